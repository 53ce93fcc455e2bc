"""Attention written out in float64 from the contract's words, and how far float32 may be from it.

Independent of the library: `smyrf.reference` shares argument checks and masks with the executors,
so it is compared with this too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

import smyrf

Array = npt.NDArray[Any]
UNIT = 2.0**-24  # unit roundoff of float32
HALF_UNIT = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Exact:
    """out (B, Hq, Nq, Dv) and lse (B, Hq, Nq) in float64, and the error that each may have."""

    out: Array
    lse: Array
    out_bound: Array
    lse_bound: Array


def allowed_pairs(
    shape: tuple[int, int, int, int],
    attn_mask: Array | None = None,
    is_causal: bool = False,
    window: tuple[int, int] | None = None,
    key_padding_mask: Array | None = None,
    query_padding_mask: Array | None = None,
) -> tuple[Array, Array]:
    """Which pairs take part, bool, and what is added to their logits, both of `shape`."""
    batch, _, queries, keys = shape
    i = np.arange(queries)[:, None] + keys - queries  # the lower right corners meet
    j = np.arange(keys)[None, :]
    allowed = np.ones(shape, bool)
    bias = np.zeros(shape)
    if is_causal:
        allowed &= j <= i
    if window is not None:
        left, right = window
        if left >= 0:
            allowed &= j >= i - left
        if right >= 0:
            allowed &= j <= i + right
    if key_padding_mask is not None:
        allowed &= key_padding_mask.reshape(batch, 1, 1, keys)
    if query_padding_mask is not None:
        allowed &= query_padding_mask.reshape(batch, 1, queries, 1)
    if attn_mask is not None:
        if attn_mask.dtype == bool:
            allowed &= attn_mask
        else:
            bias = bias + attn_mask.astype(np.float64)
            allowed &= ~np.isneginf(bias)
            bias = np.where(allowed, bias, 0.0)
    return allowed, bias


def exact(
    query: Array,
    key: Array,
    value: Array,
    *,
    counts: Array | None = None,
    scale: float | None = None,
    layout: str = "BHND",
    merges: int = 0,
    dtype: str | None = None,
    **masks: Any,
) -> Exact:
    """softmax(scale q k^T + bias) v over the allowed pairs, each as often as `counts` says.

    `merges` is how many partial results are merged, `dtype` that of the output; see `growth` and
    the terms below for the bounds.
    """
    dtype = dtype or query.dtype.name
    if layout == "BNHD":
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    group = q.shape[1] // max(1, k.shape[1])
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    depth, keys = q.shape[3], k.shape[2]
    allowed, bias = allowed_pairs((*q.shape[:3], keys), **masks)
    weight = allowed.astype(np.float64) if counts is None else counts * allowed
    # Keys that nobody sees may hold anything.
    seen = weight.any(axis=2)[..., None]
    k, v = np.where(seen, k, 0.0), np.where(seen, v, 0.0)
    q = np.where(weight.any(axis=3)[..., None], q, 0.0)

    scale = depth**-0.5 if scale is None else scale
    logits = np.where(weight > 0, scale * (q @ k.swapaxes(2, 3)) + bias, -np.inf)
    largest = logits.max(axis=3, keepdims=True, initial=-np.inf)
    largest = np.where(np.isneginf(largest), 0.0, largest)
    share = weight * np.exp(logits - largest)
    total = share.sum(axis=3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (largest + np.log(total))[..., 0]
    share = share / np.where(total == 0.0, 1.0, total)

    # Every unnormalised weight is off by a factor of 1 +- error: roundings of the logit's products
    # and of the softmax's sums grow as `growth` says; those of scaling, bias and the subtracted
    # maximum have the logit's size; exp is good to 3.5 units, used once a tile of 64 keys at most.
    longest = [np.linalg.norm(x, axis=3).max(axis=2, initial=0.0) for x in (q, k)]
    size = abs(scale) * longest[0] * longest[1]
    whole = size + abs(bias).max(axis=(2, 3), initial=0.0)
    terms = max(1.0, float(weight.sum(axis=3).max(initial=0.0)))
    tiles = terms / 64 + 4 + merges
    error = UNIT * (
        growth(depth + 4) * size + 6 * whole + 3.5 * (1 + tiles) + growth(terms + tiles)
    )
    error += UNIT * (2 + merges * (6 + 3 * (whole + np.log(terms + 1))))
    half = HALF_UNIT[dtype]
    out = share @ v
    out_bound = 2 * error[..., None, None] * (share @ abs(v)) * (1 + half) + half * abs(out) + 1e-30
    if dtype == "float16":
        out_bound = out_bound + 2.0**-25  # half of the distance of subnormal numbers
    lse_bound = np.broadcast_to(
        (error + 4 * UNIT * (whole + np.log(terms + 1) + 1))[..., None], lse.shape
    )
    return Exact(out, lse, out_bound, lse_bound)


def growth(n: float) -> float:
    """How many units n roundings add up to: below 7 sqrt(n) but once in 10^10 (Higham & Mary)."""
    return min(n, 7 * float(n) ** 0.5)


def assert_close(out: Array, lse: Array | None, expected: Exact, layout: str = "BHND") -> None:
    """Every element within its bound, and exactly 0 and -inf where a query sees nothing."""
    out = np.asarray(out, np.float64)
    if layout == "BNHD":
        out = out.swapaxes(1, 2)
    assert out.shape == expected.out.shape
    blind = np.isneginf(expected.lse)
    excess = np.where(blind[..., None], abs(out), abs(out - expected.out) - expected.out_bound)
    assert not (~(excess <= 0)).any(), describe(
        "out", out, expected.out, expected.out_bound, excess
    )
    if lse is None:
        return
    assert lse.shape == expected.lse.shape
    assert (np.isneginf(lse) == blind).all()
    got, want = (np.where(blind, 0.0, x) for x in (lse, expected.lse))
    excess = abs(got - want) - expected.lse_bound
    assert not (~(excess <= 0)).any(), describe("lse", got, want, expected.lse_bound, excess)


def describe(name: str, got: Array, want: Array, bound: Array, excess: Array) -> str:
    at = np.unravel_index(np.nanargmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
    return (
        f"{name}{[int(x) for x in at]}: got {got[at]!r}, expected {want[at]!r} +- {bound[at]:.2e}"
    )


def pair_counts(plan: smyrf.Plan) -> Array:
    """How often an `lsh` plan evaluates every pair: (B, Hq, Nq, Nk)."""
    counts = np.zeros((plan.batch, plan.query_heads, plan.queries, plan.keys))
    for b in range(plan.batch):
        for h in range(plan.query_heads):
            for r in range(plan.n_hashes):
                query_order, key_order, blocks = plan.head(r, b, h)
                for begin, end, ranges in blocks:
                    for first, last, _ in ranges:
                        rows = np.ix_(query_order[begin:end], key_order[first:last])
                        counts[b, h][rows] += 1
    return counts


def memory(array: Array, kind: str) -> Array:
    """The same (B, H, N, D) numbers in other memory; the last dimension stays contiguous."""
    if kind == "whole":
        return array
    if kind == "wide rows":
        wide = np.full((*array.shape[:3], array.shape[3] + 3), np.nan, array.dtype)
        view = wide[..., 1 : 1 + array.shape[3]]
    elif kind == "heads inside":
        batch, heads, rows, depth = array.shape
        view = np.empty((batch, rows, heads, depth), array.dtype).swapaxes(1, 2)
    elif kind == "backwards":
        view = np.empty_like(array)[:, :, ::-1]
    elif kind == "every other":
        batch, heads, rows, depth = array.shape
        view = np.full((2 * batch, 2 * heads, 2 * rows, depth), np.nan, array.dtype)
        view = view[::2, 1::2, ::2]
    else:
        raise ValueError(kind)
    view[...] = array
    return view


MEMORY = ("whole", "wide rows", "heads inside", "backwards", "every other")


def examples(count: int) -> settings:
    """The same examples in every run, however slow the machine."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def random_arrays(
    shape: dict[str, int], seed: int, dtype: Any = np.float32, spread: float = 1.0
) -> tuple[Array, Array, Array]:
    """query, key and value, normal; `spread` decides how sharp the softmax is."""
    rng = np.random.default_rng(seed)
    batch, heads, group = shape["batch"], shape["key_heads"], shape["group"]
    return tuple(
        (factor * rng.standard_normal(size)).astype(dtype)
        for factor, size in (
            (spread, (batch, heads * group, shape["queries"], shape["depth"])),
            (1.0, (batch, heads, shape["keys"], shape["depth"])),
            (1.0, (batch, heads, shape["keys"], shape["value_depth"])),
        )
    )  # type: ignore[return-value]


def plain(batch: int, heads: int, queries: int, keys: int, depth: int, value_depth: int) -> Any:
    return {
        "batch": batch,
        "key_heads": heads,
        "group": 1,
        "queries": queries,
        "keys": keys,
        "depth": depth,
        "value_depth": value_depth,
    }


@st.composite
def calls(draw: st.DrawFn, padding_only: bool = False) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Arrays (B, H, N, D) in any memory, and keywords of a call that takes them."""
    sizes = {"batch": 2, "key_heads": 2, "group": 3, "queries": 90, "keys": 200, "depth": 40}
    shape = {name: draw(st.integers(1, most)) for name, most in sizes.items()}
    shape["value_depth"] = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = random_arrays(
        shape,
        int(rng.integers(2**32)),
        draw(st.sampled_from([np.float32, np.float16])),
        draw(st.sampled_from([0.1, 1.0, 5.0])),
    )
    arrays = tuple(memory(x, draw(st.sampled_from(MEMORY))) for x in arrays)
    batch, queries, keys = shape["batch"], shape["queries"], shape["keys"]
    heads = arrays[0].shape[1]
    options: dict[str, Any] = {"enable_gqa": shape["group"] > 1}
    if draw(st.booleans()):
        options["key_padding_mask"] = rng.random((batch, keys)) < draw(st.sampled_from([0.1, 0.8]))
    if draw(st.booleans()):
        options["query_padding_mask"] = rng.random((batch, queries)) < 0.7
    if padding_only:
        options["scale"] = draw(st.sampled_from([None, 0.3]))
        return arrays, options
    options["scale"] = draw(st.sampled_from([None, 0.3, 0.0, -0.2]))
    options["is_causal"] = draw(st.booleans())
    sides = st.sampled_from([-1, 0, 1, 7, 64, 1000])
    options["window"] = draw(st.none() | st.tuples(sides, sides))
    kind = draw(st.sampled_from([None, bool, np.float32, np.float16]))
    if kind is not None:
        size = draw(
            st.sampled_from(
                [
                    (batch, heads, queries, keys),
                    (batch, 1, queries, 1),
                    (1, heads, 1, keys),
                    (heads, queries, keys),
                    (queries, keys),
                    (1, keys),
                    (keys,),
                ]
            )
        )
        mask = rng.random(size) < 0.7
        if kind is not bool:
            mask = np.where(mask, rng.standard_normal(size), -np.inf).astype(kind)
        options["attn_mask"] = np.asfortranarray(mask) if draw(st.booleans()) else mask
    return arrays, options


def masks_of(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords that `exact` takes."""
    return {name: x for name, x in options.items() if name != "enable_gqa"}
