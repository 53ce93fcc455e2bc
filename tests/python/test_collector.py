"""The collector: exact tests of what is recorded, and of the relative error's definition."""

from __future__ import annotations

import contextvars
import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch

import smyrf
from smyrf import collector

RNG = np.random.default_rng(11)


def arrays(
    batch: int = 2, heads: int = 4, key_heads: int = 4, queries: int = 40, keys: int = 48
) -> tuple[Any, Any, Any]:
    q = RNG.standard_normal((batch, heads, queries, 16), np.float32)
    k = RNG.standard_normal((batch, key_heads, keys, 16), np.float32)
    v = RNG.standard_normal((batch, key_heads, keys, 12), np.float32)
    return 2 * q, k, v


def definition(
    out: Any, dense: Any, value: Any, valid_queries: Any, valid_keys: Any
) -> np.ndarray[Any, Any]:
    """Relative error as written in the docs, one sum at a time."""
    batch, heads = out.shape[:2]
    result = np.zeros((batch, heads))
    for b in range(batch):
        for h in range(heads):
            rows = np.flatnonzero(valid_queries[b])
            values = value[b, h * value.shape[1] // heads][np.flatnonzero(valid_keys[b])]
            off = sum(((out[b, h, i] - dense[b, h, i]) ** 2).sum() for i in rows)
            size = sum((dense[b, h, i] ** 2).sum() for i in rows)
            spread = np.mean(((values - values.mean(0)) ** 2).sum(1)) * len(rows)
            result[b, h] = np.sqrt(off) / max(np.sqrt(size), 0.01 * np.sqrt(spread))
    return result


def test_nothing_is_recorded_outside_and_one_record_a_call_inside() -> None:
    q, k, v = arrays()
    assert collector.active() is None
    with smyrf.collect() as records:
        smyrf.attention(q, k, v)
        smyrf.attention(q[:, :, :7], k, v, method="lsh", cluster_size=8)
    smyrf.attention(q, k, v)
    assert [record.statistics.method for record in records] == ["dense", "lsh"]
    assert [record.layer for record in records] == [None, None]
    assert [record.relative_error for record in records] == [None, None]
    assert records[1].shape == (2, 4, 4, 7, 48, 16, 12)
    assert records[1].statistics.density.shape == (2, 4)


def test_shape_names_sizes_in_either_layout() -> None:
    q, k, v = arrays(heads=4, key_heads=2, queries=5, keys=9)
    with smyrf.collect() as records:
        smyrf.attention(q, k, v, enable_gqa=True)
        q, k, v = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v))
        smyrf.attention(q, k, v, enable_gqa=True, layout="BNHD")
    wanted = collector.Shape(batch=2, heads=4, key_heads=2, queries=5, keys=9, dim=16, value_dim=12)
    assert [record.shape for record in records] == [wanted, wanted]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
def test_relative_error_against_dense_by_its_definition(kind: str, layout: str) -> None:
    q, k, v = arrays(key_heads=2)
    valid_queries, valid_keys = RNG.random((2, 40)) > 0.3, RNG.random((2, 48)) > 0.3
    # Padded rows must not matter at all.
    q[~np.broadcast_to(valid_queries[:, None], q.shape[:3])] = np.nan
    k[~np.broadcast_to(valid_keys[:, None], k.shape[:3])] = np.nan
    v[~np.broadcast_to(valid_keys[:, None], v.shape[:3])] = np.nan
    masks = {"key_padding_mask": valid_keys, "query_padding_mask": valid_queries}
    common: dict[str, Any] = {"enable_gqa": True, "scale": 0.4}
    dense = smyrf.reference.attention(q, k, v, **masks, **common)
    lsh = {"method": "lsh", "cluster_size": 12, "n_hashes": 2}
    out = smyrf.attention(q, k, v, **masks, **common, **lsh)
    given = [q, k, v] if layout == "BHND" else [x.swapaxes(1, 2) for x in (q, k, v)]
    if kind == "torch":
        given = [torch.tensor(x).requires_grad_() for x in given]
        masks = {name: torch.tensor(mask) for name, mask in masks.items()}
    with smyrf.collect(errors=True) as records:
        smyrf.attention(*given, layout=layout, **masks, **common, **lsh)
    assert len(records) == 1, "the dense call made for comparison must not be recorded"
    assert records[0].statistics.method == "lsh"
    error = records[0].relative_error
    assert error is not None
    assert error.min() > 0.01
    np.testing.assert_allclose(
        error, definition(out, dense, v, valid_queries, valid_keys), rtol=1e-4
    )


def test_bfloat16_is_widened_before_it_is_compared() -> None:
    q, k, v = (torch.tensor(x).bfloat16() for x in arrays())
    with smyrf.collect(errors=True) as records:
        smyrf.attention(q, k, v, method="lsh", cluster_size=12, n_hashes=2)
        smyrf.attention(q, k, v, is_causal=True)
    first, second = (record.relative_error for record in records)
    assert first is not None
    assert second is not None
    assert 0.05 < np.median(first) < 1
    assert second.max() == 0.0


def test_the_denominator_has_a_floor_relative_to_the_values_spread() -> None:
    value = RNG.standard_normal((1, 1, 50, 6)) + 100.0
    dense = np.zeros((1, 1, 9, 6))
    out = np.full_like(dense, 0.5)
    everything = np.ones((1, 50), bool)
    error = collector.relative_error(out, dense, value)
    np.testing.assert_allclose(error, definition(out, dense, value, everything[:, :9], everything))
    deviation = value - value.mean(axis=2, keepdims=True)
    rms = np.sqrt((deviation**2).sum() / 50)
    np.testing.assert_allclose(error, np.sqrt(6) * 0.5 / (0.01 * rms))


def test_relative_error_of_edges() -> None:
    value = RNG.standard_normal((2, 2, 4, 3))
    dense = RNG.standard_normal((2, 2, 5, 3))
    out = dense.copy()
    out[0, 1, 2, 0] = np.nan
    queries = np.ones((2, 5), bool)
    queries[1] = False
    error = collector.relative_error(out, dense, value, query_padding_mask=queries)
    assert error[0, 0] == 0.0
    assert np.isnan(error[0, 1])
    assert error[1].tolist() == [0.0, 0.0]
    nothing = np.zeros((1, 1, 5, 3))
    assert collector.relative_error(nothing, nothing, nothing[:, :, :0]).tolist() == [[0.0]]
    assert collector.relative_error(nothing + 1, nothing, nothing).tolist() == [[np.inf]]


@pytest.mark.parametrize(
    "sizes", [{"heads": 0, "key_heads": 0}, {"batch": 0}, {"queries": 0}, {"keys": 0}]
)
def test_errors_of_an_empty_call(sizes: dict[str, int]) -> None:
    q, k, v = arrays(**sizes)
    with smyrf.collect(errors=True) as records:
        smyrf.attention(q, k, v)
    error = records[0].relative_error
    assert error is not None
    assert error.shape == q.shape[:2]
    assert not error.any()


def test_blocks_nest_and_only_those_that_asked_get_errors() -> None:
    q, k, v = arrays()
    with smyrf.collect() as outer:
        smyrf.attention(q, k, v)
        with smyrf.collect(errors=True) as inner:
            smyrf.attention(q, k, v, method="lsh", cluster_size=8)
        smyrf.attention(q, k, v)
    assert [record.statistics.method for record in outer] == ["dense", "lsh", "dense"]
    assert [record.statistics.method for record in inner] == ["lsh"]
    assert inner[0].relative_error is not None
    assert outer[1].relative_error is None
    assert outer[1].statistics is inner[0].statistics


PLANNED: list[dict[str, Any]] = [
    {"method": "dense", "is_causal": True, "window": (12, -1), "padding": True},
    {"method": "dense", "window": (3, 5), "attn_mask": True},
    {"method": "dense", "is_causal": True, "positions": (290, 7)},
    {"method": "lsh", "cluster_size": 8, "seed": 5, "padding": True},
    {"method": "lsh", "cluster_size": 8, "seed": 5, "dropout_p": 0.3},
    {"method": "tree", "tolerance": 0.5, "max_density": 0.8, "padding": True},
    {"method": "auto", "padding": True, "dropout_p": 0.3, "seed": 9},
]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
@pytest.mark.parametrize("options", PLANNED, ids=lambda options: " ".join(options))
def test_a_call_with_a_plan_has_the_error_of_the_call_without(
    kind: str, layout: str, options: dict[str, Any]
) -> None:
    q, k, v = arrays(queries=40, keys=300)
    if layout == "BNHD":
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    options = {**options, "layout": layout, "scale": 0.4}
    masks: dict[str, Any] = {}
    if options.pop("padding", False):
        masks["key_padding_mask"] = np.arange(300) < [[300], [200]]
        masks["query_padding_mask"] = np.arange(40) < [[40], [30]]
    if options.get("attn_mask"):
        options["attn_mask"] = RNG.standard_normal((40, 300), np.float32)
    if kind == "torch":
        q, k, v = (torch.from_numpy(np.ascontiguousarray(x)) for x in (q, k, v))
        masks = {name: torch.from_numpy(mask) for name, mask in masks.items()}
        if "attn_mask" in options:
            options["attn_mask"] = torch.from_numpy(options["attn_mask"])
    plan = smyrf.plan(q, k, value=v, **options, **masks)
    # What the plan does not hold.
    left = {n: options[n] for n in ("layout", "scale", "attn_mask", "dropout_p") if n in options}
    if plan.method == "dense" and "seed" in options:
        left["seed"] = options["seed"]  # of dropout
    with smyrf.collect(errors=True) as records:
        smyrf.attention(q, k, v, **options, **masks)
        smyrf.attention(q, k, v, plan=plan, **left)
        smyrf.attention(q, k, v, plan=plan, **left, **masks)
    assert [record.statistics.method for record in records] == [plan.method] * 3
    errors = [record.relative_error for record in records]
    assert errors[0] is not None
    assert np.array_equal(errors[1], errors[2])
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-3, atol=1e-6)
    if plan.method == "dense":
        assert errors[1].max() == 0.0
    else:
        assert errors[1].min() > 1e-4


def test_records_can_be_pickled_and_copied() -> None:
    q, k, v = arrays()
    with smyrf.collect(errors=True) as records:
        smyrf.attention(q, k, v, method="lsh", cluster_size=8)
    for again in (pickle.loads(pickle.dumps(records[0])), copy.deepcopy(records[0])):
        assert (again.layer, again.shape) == (records[0].layer, records[0].shape)
        assert np.array_equal(again.relative_error, records[0].relative_error)
        assert repr(again.statistics) == repr(records[0].statistics)


def test_a_block_that_raises_stops_collecting() -> None:
    with pytest.raises(KeyError), smyrf.collect():
        raise KeyError
    assert collector.active() is None


def test_other_threads_are_collected_only_in_a_copy_of_the_context() -> None:
    q, k, v = arrays()

    def attend() -> None:
        smyrf.attention(q, k, v)

    with smyrf.collect() as records:
        alone = threading.Thread(target=attend)
        alone.start()
        alone.join()
        assert records == []
        joined = threading.Thread(target=contextvars.copy_context().run, args=(attend,))
        joined.start()
        joined.join()
    assert len(records) == 1


def test_two_threads_collect_apart() -> None:
    q, k, v = arrays()
    found: dict[int, list[int]] = {}
    barrier = threading.Barrier(2)

    def attend(rows: int) -> None:
        with smyrf.collect() as records:
            barrier.wait()
            for _ in range(20):
                smyrf.attention(q[:, :, :rows], k, v)
            barrier.wait()
        found[rows] = [record.shape.queries for record in records]

    threads = [threading.Thread(target=attend, args=(rows,)) for rows in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {3: [3] * 20, 5: [5] * 20}
