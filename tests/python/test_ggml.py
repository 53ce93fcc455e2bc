"""The plug-in for programs built on ggml, loaded by the ggml in the wheel of xllamacpp.

Exact against float64; approximate within the tolerance; hostile: what it must leave to ggml.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ggml_host import BF16, F16, F32, Q8_0, Attention, address, core
from numpy.typing import NDArray

from smyrf.collector import relative_error

assert core  # skipped where there is none


def set_method(name: str) -> bool:
    return bool(address("smyrf_set_method", ctypes.c_bool, ctypes.c_char_p)(name.encode()))


@pytest.fixture(params=["dense"])
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    assert set_method(request.param)
    yield request.param
    set_method("auto")


def mask(queries: int, keys: int, kind: str, seed: int = 0) -> NDArray[np.float64] | None:
    """A mask as llama.cpp makes it: the last used cell holds the last query, then unused cells."""
    if kind == "none":
        return None
    used = keys - 17
    position = np.arange(used - queries, used)[:, None]
    cell = np.arange(keys)
    causal = (cell <= position) & (cell < used)
    generator = np.random.default_rng(seed)
    allowed = {
        "causal": causal,
        "padding": np.broadcast_to(cell < used, causal.shape),
        "window": causal & (cell > position - 40),
        # Two texts of one batch in one cache, whose cells alternate in runs of 8.
        "two": causal & ((cell // 8) % 2 == (position > used - queries // 2)),
        # Two texts, each at a place of its own: the second one's keys start later.
        "packed": causal & ((cell >= used - queries // 2) | (position < used - queries // 2)),
        "random": generator.random(causal.shape) < 0.5,
        "blind": causal & (position % 3 > 0),
        "bias": causal,
    }[kind]
    values = np.where(allowed, 0.0, -np.inf)
    if kind == "bias":
        values = values + generator.normal(size=values.shape).astype(np.float16)
    return values[None, None]


def attention(kind: str, **changes: Any) -> Attention:
    sizes = {"batch": 1, "heads": 6, "key_heads": 2, "queries": 70, "keys": 300, "depth": 64}
    sizes |= {name: changes.pop(name) for name in list(changes) if name in sizes}
    value_depth = changes.pop("value_depth", sizes["depth"])
    generator = np.random.default_rng(1)
    batch, rows = sizes["batch"], (sizes["keys"], sizes["depth"])
    return Attention(
        query=generator.normal(size=(batch, sizes["heads"], sizes["queries"], sizes["depth"])),
        key=generator.normal(size=(batch, sizes["key_heads"], *rows)),
        value=generator.normal(size=(batch, sizes["key_heads"], sizes["keys"], value_depth)),
        mask=changes.pop("mask", mask(sizes["queries"], sizes["keys"], kind)),
        scale=sizes["depth"] ** -0.5,
        **changes,
    )


def assert_exact(call: Attention) -> None:
    got = call.run("smyrf")
    assert got is not None
    np.testing.assert_allclose(got, call.truth(), rtol=0, atol=3e-6)


KINDS = ["none", "causal", "padding", "window", "two", "packed", "random", "blind", "bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_with_masks_of_llama_cpp(kind: str, method: str) -> None:
    assert_exact(attention(kind))


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 16, "keys": 256},
        {"heads": 4, "key_heads": 4, "depth": 40, "value_depth": 24},
        {"batch": 3, "depth": 128},
        {"queries": 200, "keys": 256, "heads": 1, "key_heads": 1},
    ],
)
def test_exact_with_shapes_and_dtypes(dtype: int, sizes: dict[str, int], method: str) -> None:
    assert_exact(attention("causal", dtype=dtype, **sizes))


def test_each_stream_has_its_own_mask(method: str) -> None:
    masks = [mask(70, 300, kind) for kind in ("causal", "window", "random")]
    assert_exact(attention("causal", batch=3, mask=np.concatenate(masks)))  # type: ignore[arg-type]


def test_a_mask_for_each_head(method: str) -> None:
    masks = [mask(70, 300, "random", seed) for seed in range(6)]
    assert_exact(attention("causal", mask=np.concatenate(masks, axis=1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"queries": 1},
        {"max_bias": 8.0},
        {"soft_cap": 30.0},
        {"sinks": np.zeros(6)},
        {"dtype": Q8_0},
    ],
    ids=["one query", "ALiBi", "soft cap", "sinks", "quantised cache"],
)
def test_ggml_keeps_what_the_plug_in_does_not_take(changes: dict[str, Any]) -> None:
    assert attention("causal", **changes).run("smyrf") is None


def structured(queries: int, keys: int) -> Attention:
    """Rows in clusters: far ones can be summarised."""
    generator = np.random.default_rng(2)
    centres = 4.0 * generator.normal(size=(12, 64))
    rows = centres[generator.integers(12, size=keys)]
    key = rows + generator.normal(size=rows.shape)
    value = rows @ generator.normal(size=(64, 64)) / 32 + 0.3 * generator.normal(size=rows.shape)
    query = key[-queries:] + generator.normal(size=(2, queries, 64))
    return Attention(
        query=query[None],
        key=key[None, None],
        value=value[None, None],
        mask=mask(queries, keys, "causal"),
        scale=1 / 8,
    )


@pytest.mark.parametrize("tolerance", [0.1, 0.02])
def test_later_chunks_keep_the_tolerance(tolerance: float) -> None:
    assert address("smyrf_set_tolerance", ctypes.c_bool, ctypes.c_double)(tolerance)
    call = structured(1024, 3456)
    got, want = call.run("smyrf"), call.truth()
    assert got is not None
    exact = call.run("cpu")
    value = np.repeat(call.value, 2, axis=1)
    error = relative_error(got.swapaxes(1, 2), want.swapaxes(1, 2), value)
    assert (error <= tolerance).all()
    # It was `tree` that answered.
    assert np.abs(got - want).max() > 10 * np.abs(exact - want).max()  # type: ignore[operator]


def test_dials_out_of_range_are_refused() -> None:
    set_tolerance = address("smyrf_set_tolerance", ctypes.c_bool, ctypes.c_double)
    assert not set_method("lsh")
    assert not set_tolerance(1.0)
    assert not set_tolerance(float("nan"))
    assert set_tolerance(0.05)
