"""smyrf.attention on NumPy arrays: against float64 within derived bounds, shapes, determinism."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import (
    MEMORY,
    Array,
    assert_close,
    calls,
    exact,
    examples,
    masks_of,
    memory,
    pair_counts,
    plain,
    random_arrays,
)
from hypothesis import given
from hypothesis import strategies as st

import smyrf
from smyrf import _core


@examples(250)
@given(calls(), st.integers(0, 3), st.booleans())
def test_dense_is_within_its_bound(
    call: tuple[tuple[Array, ...], dict[str, Any]], threads: int, heads_last: bool
) -> None:
    arrays, options = call
    expected = exact(*arrays, **masks_of(options))
    layout = "BNHD" if heads_last else "BHND"
    given_arrays = [x.swapaxes(1, 2) for x in arrays] if heads_last else arrays
    keywords = {**options, "layout": layout}
    out, lse = smyrf.attention(
        *given_arrays, **keywords, method="dense", num_threads=threads, return_lse=True
    )
    assert out.dtype == arrays[0].dtype
    assert lse.dtype == np.float32
    assert_close(out, lse, expected, layout)

    exact_out, exact_lse = smyrf.reference.attention(*given_arrays, **keywords, return_lse=True)
    if heads_last:
        exact_out = exact_out.swapaxes(1, 2)
    # Both in float64: the order of sums is all that differs.
    np.testing.assert_allclose(exact_out, expected.out, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(exact_lse, expected.lse, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "shape",
    [
        plain(1, 1, 1, 1, 1, 1),
        plain(1, 1, 1, 9000, 64, 64),
        plain(2, 2, 3, 5000, 80, 24),
        plain(1, 1, 64, 4500, 16, 16),
        plain(1, 1, 65, 300, 512, 512),
        plain(1, 2, 257, 129, 33, 65),
        plain(1, 1, 700, 700, 64, 64),
    ],
    ids=lambda shape: "x".join(str(x) for x in shape.values()),
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shapes_that_split_tiles_or_keys(shape: dict[str, int], dtype: Any) -> None:
    arrays = random_arrays(shape, 1, dtype, 2.0)
    merges = shape["keys"] // 1024  # keys of few queries are computed in parts
    for options in ({}, {"is_causal": True}, {"window": (100, 3)}):
        out, lse = smyrf.attention(*arrays, **options, method="dense", return_lse=True)
        assert_close(out, lse, exact(*arrays, merges=merges, **options))


def test_a_row_masked_by_the_most_negative_number_is_uniform() -> None:
    """What transformers' additive masks hold: such a row is not one that sees nothing."""
    query, key, value = random_arrays(plain(1, 1, 6, 50, 8, 8), 0)
    mask = np.zeros((6, 50), np.float32)
    mask[2], mask[3, :40] = np.finfo(np.float32).min, np.finfo(np.float32).min
    out = smyrf.attention(query, key, value, mask)
    np.testing.assert_allclose(out[0, 0, 2], value[0, 0].mean(0), atol=1e-6)
    few = smyrf.attention(query[:, :, 3:4], key[:, :, 40:], value[:, :, 40:])
    np.testing.assert_allclose(out[0, 0, 3], few[0, 0, 0], atol=1e-6)


def test_causal_is_aligned_to_the_lower_right() -> None:
    query, key, value = random_arrays(plain(1, 1, 3, 5, 4, 5), 0)
    value[:] = np.eye(5)
    weights = smyrf.attention(query, key, value, is_causal=True)[0, 0]
    assert ((weights > 0) == np.tri(3, 5, 2, bool)).all()
    weights = smyrf.attention(key, query, value[:, :, :3], is_causal=True)[0, 0]
    assert ((weights[:, :3] > 0) == np.tri(5, 3, -2, bool)).all()


def test_what_is_returned_and_in_which_order() -> None:
    arrays = random_arrays(plain(2, 3, 4, 7, 8, 5), 0)
    out = smyrf.attention(*arrays)
    assert out.shape == (2, 3, 4, 5)
    pair = smyrf.attention(*arrays, return_lse=True)
    triple = smyrf.attention(*arrays, return_lse=True, return_stats=True)
    both = smyrf.attention(*arrays, return_stats=True)
    assert [len(x) for x in (pair, triple, both)] == [2, 3, 2]
    assert (pair[1] == triple[1]).all()
    for statistics in (triple[2], both[1]):
        assert isinstance(statistics, smyrf.Statistics)
        assert statistics.method == "dense"
        assert "auto" in statistics.reason
        assert (statistics.density == 1).all()
        assert statistics.density.shape == statistics.seconds.shape == (2, 3)
        assert not statistics.non_finite.any()
        assert (statistics.seconds > 0).all()
        assert statistics.execution_seconds > 0
        assert "Statistics: dense (auto: " in repr(statistics)
        assert "6 heads, mean density 1, planning" in repr(statistics)
    lsh = smyrf.attention(*arrays, method="lsh", cluster_size=3, return_stats=True)[1]
    assert (lsh.method, lsh.reason) == ("lsh", "asked for")
    assert not lsh.dense_heads.any()


def test_layouts_agree_and_lse_keeps_its_own() -> None:
    arrays = random_arrays(plain(2, 3, 70, 90, 8, 5), 0)
    out, lse = smyrf.attention(*arrays, return_lse=True)
    turned = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays]
    turned_out, turned_lse = smyrf.attention(*turned, layout="BNHD", return_lse=True)
    assert turned_out.shape == (2, 70, 3, 5)
    assert (turned_out.swapaxes(1, 2) == out).all()
    assert (turned_lse == lse).all()


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("dials", [{}, {"method": "lsh", "cluster_size": 16}])
def test_out_is_written_in_place_and_nothing_beside_it(kind: str, dials: dict[str, Any]) -> None:
    arrays = random_arrays(plain(2, 2, 70, 90, 8, 5), 0, np.float16)
    expected = smyrf.attention(*arrays, **dials)
    out = memory(np.full_like(expected, 7), kind)
    base = out if out.base is None else out.base
    before = base.copy()
    assert smyrf.attention(*arrays, **dials, out=out) is out
    assert (out == expected).all()
    out[...] = 7
    np.testing.assert_array_equal(base, before)


def test_broadcast_inputs_are_taken_as_they_are() -> None:
    query, key, value = random_arrays(plain(1, 1, 70, 90, 8, 5), 0)
    wide = [np.broadcast_to(x, (3, 4, *x.shape[2:])) for x in (query, key, value)]
    for dials in ({}, {"method": "lsh", "cluster_size": 16}):
        out = smyrf.attention(*wide, **dials)
        assert (out == smyrf.attention(query, key, value, **dials)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "shape",
    [plain(2, 2, 300, 310, 24, 40), plain(1, 1, 1, 9000, 64, 64), plain(1, 2, 40, 5000, 8, 8)],
    ids=["many", "one query", "split keys"],
)
def test_the_same_bits_for_any_number_of_threads(shape: dict[str, int], dtype: Any) -> None:
    arrays = random_arrays(shape, 0, dtype)
    padding = np.random.default_rng(0).random((shape["batch"], shape["keys"])) < 0.8
    for options in (
        {},
        {"is_causal": True, "key_padding_mask": padding},
        {"method": "lsh", "n_hashes": 3, "key_padding_mask": padding},
    ):
        results = [
            smyrf.attention(*arrays, **options, num_threads=n, return_lse=True) for n in (1, 2, 3)
        ]
        bits = {(out.tobytes(), lse.tobytes()) for out, lse in results}
        assert len(bits) == 1


@pytest.fixture
def best_instruction_set_afterwards() -> Iterator[None]:
    yield
    _core.force_instruction_set("")


@pytest.mark.usefixtures("best_instruction_set_afterwards")
@pytest.mark.parametrize("name", _core.instruction_sets())
def test_every_instruction_set_is_within_the_bound(name: str) -> None:
    _core.force_instruction_set(name)
    for dtype, spread in itertools.product((np.float32, np.float16), (1.0, 5.0)):
        arrays = random_arrays(plain(1, 2, 133, 259, 37, 21), 0, dtype, spread)
        expected = exact(*arrays, is_causal=True)
        out, lse, statistics = smyrf.attention(
            *arrays, is_causal=True, method="dense", return_lse=True, return_stats=True
        )
        assert statistics.instruction_set == name
        assert_close(out, lse, expected)
        dials = {"method": "lsh", "n_hashes": 3, "cluster_size": 20}
        plan = smyrf.plan(*arrays[:2], **dials)
        out, lse = smyrf.attention(*arrays, plan=plan, return_lse=True)
        assert_close(out, lse, exact(*arrays, counts=pair_counts(plan), merges=2))


def test_padded_entries_of_a_batch_equal_entries_alone() -> None:
    """Where the contract promises it: left-padded, not causal, or equal padding of q and k."""
    query, key, value = random_arrays(plain(2, 2, 60, 60, 16, 16), 0)
    lengths = (60, 43)
    right = np.arange(60) < np.array(lengths)[:, None]
    for valid, options in (
        (right, {}),
        (right, {"is_causal": True}),
        (right[:, ::-1], {"is_causal": True}),
        (right[:, ::-1], {"window": (9, 2)}),
        (right, {"method": "lsh", "cluster_size": 8, "n_hashes": 3}),
    ):
        out, lse = smyrf.attention(
            query,
            key,
            value,
            **options,
            key_padding_mask=valid,
            query_padding_mask=valid,
            return_lse=True,
        )
        for b, rows in enumerate(valid):
            part = [x[b : b + 1, :, rows] for x in (query, key, value)]
            alone, alone_lse = smyrf.attention(*part, **options, return_lse=True)
            np.testing.assert_allclose(out[b, :, rows], alone[0].swapaxes(0, 1), atol=3e-6)
            np.testing.assert_allclose(lse[b][:, rows], alone_lse[0], atol=3e-6)
            assert (out[b][:, ~rows] == 0).all()
            assert np.isneginf(lse[b][:, ~rows]).all()


@pytest.mark.parametrize("dials", [{}, {"method": "lsh"}], ids=["dense", "lsh"])
def test_no_queries_no_keys_no_batch(dials: dict[str, Any]) -> None:
    query, key, value = random_arrays(plain(2, 3, 5, 7, 8, 4), 0)
    for arrays, shape in (
        ((query[:, :, :0], key, value), (2, 3, 0, 4)),
        ((query[:0], key[:0], value[:0]), (0, 3, 5, 4)),
        ((query[:, :0], key[:, :0], value[:, :0]), (2, 0, 5, 4)),
        ((query[:, :, :0], key[:, :, :0], value[:, :, :0]), (2, 3, 0, 4)),
    ):
        out, lse, statistics = smyrf.attention(*arrays, **dials, return_lse=True, return_stats=True)
        assert out.shape == shape
        assert lse.shape == shape[:3]
        assert statistics.density.shape == shape[:2]
        assert smyrf.reference.attention(*arrays, **dials).shape == shape
    out, lse = smyrf.attention(query, key[:, :, :0], value[:, :, :0], **dials, return_lse=True)
    assert (out == 0).all()
    assert out.shape == (2, 3, 5, 4)
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("bias", [float(np.finfo(np.float32).min), -1e9, 1e9])
@pytest.mark.parametrize("queries", [1, 5, 64])
@pytest.mark.parametrize("keys", [2049, 4097])
def test_parts_of_a_long_cache_weigh_by_their_keys(bias: float, queries: int, keys: int) -> None:
    """Few queries split the keys: a part of 2048 keys and one of a single key are no equals."""
    rng = np.random.default_rng(0)
    query, key = (np.zeros((1, 1, n, 8), np.float32) for n in (queries, keys))
    value = rng.standard_normal((1, 1, keys, 8)).astype(np.float32)
    value[:, :, 2048:] += 10
    mask = np.full((1, 1, queries, keys), bias, np.float32)
    out = smyrf.attention(query, key, value, mask)
    np.testing.assert_allclose(out[0, 0], np.tile(value[0, 0].mean(0), (queries, 1)), atol=1e-4)
