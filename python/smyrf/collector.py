"""Records of what attention calls did: layer, statistics, shape, relative error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smyrf._call import detached, like
from smyrf._types import Layout

if TYPE_CHECKING:
    from smyrf import Statistics

# Keywords that a dense call on the same inputs must have: they say which pairs are allowed and how
# logits are scaled. All others choose a method, or what is returned.
_CARRIED = (
    "attn_mask",
    "is_causal",
    "scale",
    "enable_gqa",
    "window",
    "positions",
    "key_padding_mask",
    "query_padding_mask",
    "layout",
    "num_threads",
)


class Shape(NamedTuple):
    """Sizes of one attention call; `heads` counts the queries' heads, `key_heads` the keys'."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    dim: int
    value_dim: int


@dataclass(frozen=True, eq=False)
class Record:
    """What one attention call did.

    Attributes:
        layer: qualified name of the layer if a model called through `smyrf.transformers`, else None
            (also None inside a compiled graph, where the name is not known).
        statistics: the call's `smyrf.Statistics` (method, density, seconds, ...).
        shape: the call's sizes.
        relative_error: (batch, heads) float64, as the function `relative_error` defines it; None
            unless `collect(errors=True)` asked for it.
    """

    layer: str | None
    statistics: Statistics
    shape: Shape
    relative_error: NDArray[np.float64] | None


class Collector:
    """Receives the calls of one `collect` block, and hands them on to the block around it."""

    def __init__(self, errors: bool, outer: Collector | None) -> None:
        self.errors = errors
        self.outer = outer
        self.records: list[Record] = []

    def add(
        self,
        statistics: Statistics,
        query: Any,
        key: Any,
        value: Any,
        out: Any,
        options: Mapping[str, Any],
    ) -> None:
        """Record one finished call.

        Args:
            statistics: of the call.
            query, key, value, out: arrays or tensors as they were passed, in the call's layout.
            options: keywords of the call (`smyrf.attention`'s names); absent ones are defaults.
        """
        collectors = [self]
        while (outer := collectors[-1].outer) is not None:
            collectors.append(outer)
        error = None
        if any(collector.errors for collector in collectors):
            error = _error_against_dense(query, key, value, out, options)
        record = Record(_layer.get(), statistics, _shape(query, key, value, options), error)
        for collector in collectors:
            wants_all = collector.errors or error is None
            collector.records.append(record if wants_all else replace(record, relative_error=None))


_active: ContextVar[Collector | None] = ContextVar("smyrf_collector", default=None)

_layer: ContextVar[str | None] = ContextVar("smyrf_layer", default=None)


def active() -> Collector | None:
    """The innermost open collector of this thread, or None."""
    return _active.get()


@contextmanager
def collect(errors: bool = False) -> Iterator[list[Record]]:
    """Collect a `Record` of every attention call made inside the block.

    The block sees the calls of its own thread (more exactly: of its `contextvars` context). It sees
    a thread that was started inside only if that runs in a copy of the context
    (`contextvars.copy_context().run`). Blocks nest: each sees the calls of the blocks inside it.

    Args:
        errors: also make a dense call on the inputs of each call, with the same masks, and record
            the relative error. That costs the dense call and sums in float64. Default False.

    Yields:
        The list that grows by one record a call.
    """
    collector = Collector(errors, _active.get())
    token = _active.set(collector)
    try:
        yield collector.records
    finally:
        _active.reset(token)


@contextmanager
def received_by(receiver: Collector) -> Iterator[None]:
    """Inside the block this collector alone receives the calls."""
    token = _active.set(receiver)
    try:
        yield
    finally:
        _active.reset(token)


def layer() -> str | None:
    """The name of the layer that is calling, or None."""
    return _layer.get()


@contextmanager
def calling(name: str) -> Iterator[None]:
    """Inside the block, calls are recorded as those of the layer `name`."""
    token = _layer.set(name)
    try:
        yield
    finally:
        _layer.reset(token)


@contextmanager
def suspended() -> Iterator[None]:
    """Inside the block no call is collected: smyrf makes some for its own purposes."""
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


def relative_error(
    out: Any,
    dense: Any,
    value: Any,
    *,
    layout: Layout = "BHND",
    key_padding_mask: Any = None,
    query_padding_mask: Any = None,
) -> NDArray[np.float64]:
    """`|out - dense| / |dense|` of every head, in Frobenius norms over its valid queries.

    A head whose dense output is almost 0 must not divide by it. The denominator is therefore at
    least 1 % of the values' deviation from their mean (RMS over the valid keys), times the square
    root of the number of valid queries. The error is 0 where a head has no valid query, and NaN
    where an output is NaN.

    Args:
        out, dense: (B, Hq, Nq, Dv) arrays or tensors, any float type, in `layout`.
        value: (B, Hkv, Nk, Dv) in `layout`; Hq is a multiple of Hkv.
        layout: of all three, "BHND" (default) or "BNHD".
        key_padding_mask, query_padding_mask: bool (B, Nk) and (B, Nq), True where a row is valid.
            Default all are.

    Returns:
        (B, Hq) float64.
    """
    if layout == "BNHD":
        out, dense, value = (array.swapaxes(1, 2) for array in (out, dense, value))
    batch, heads, queries, _ = out.shape
    group = heads // max(1, value.shape[1])
    result = np.empty((batch, heads), np.float64)
    for b in range(batch):
        valid_queries = _valid(query_padding_mask, b, queries)
        valid_keys = _valid(key_padding_mask, b, value.shape[2])
        for h in range(heads):
            want = _float64(dense[b, h])[valid_queries]
            got = _float64(out[b, h])[valid_queries]
            values = _float64(value[b, h // group])[valid_keys]
            result[b, h] = _ratio(got, want, values)
    return result


def _ratio(
    got: NDArray[np.float64], want: NDArray[np.float64], values: NDArray[np.float64]
) -> float:
    if got.shape[0] == 0:
        return 0.0
    difference = float(np.linalg.norm(got - want))
    deviation = 0.0
    if values.shape[0] > 0:
        deviation = float(np.linalg.norm(values - values.mean(axis=0))) / math.sqrt(len(values))
    floor = 0.01 * deviation * math.sqrt(len(got))
    # Not max(): a NaN in either must come through.
    denominator = float(np.maximum(np.linalg.norm(want), floor))
    if denominator == 0.0:
        return 0.0 if difference == 0.0 else difference * math.inf
    return difference / denominator


def _error_against_dense(
    query: Any, key: Any, value: Any, out: Any, options: Mapping[str, Any]
) -> NDArray[np.float64]:
    import smyrf  # not at the top: smyrf imports this module

    if options.get("plan") is not None:
        options = _with_what_the_plan_holds(query, options)
    query, key, value, out = (detached(array) for array in (query, key, value, out))
    carried = {name: options[name] for name in _CARRIED if name in options}
    if options.get("dropout_p"):  # the seed decides which pairs are dropped
        carried |= {name: options[name] for name in ("dropout_p", "seed")}
    with suspended():
        dense = smyrf.attention(query, key, value, method="dense", **carried)
    return relative_error(
        out,
        dense,
        value,
        layout=options.get("layout", "BHND"),
        key_padding_mask=options.get("key_padding_mask"),
        query_padding_mask=options.get("query_padding_mask"),
    )


def _with_what_the_plan_holds(query: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The call's options, and those of its plan that a call with a plan may leave out."""
    plan = options["plan"]
    held: dict[str, Any] = {
        "is_causal": plan.is_causal,
        "window": plan.window,
        "positions": plan.positions,
    }
    for name, valid in (
        ("key_padding_mask", plan.valid_keys),
        ("query_padding_mask", plan.valid_queries),
    ):
        held[name] = None if valid.all() else like(query, valid)
    if plan.method == "lsh":  # its seed drops pairs too
        held["seed"] = plan.seed
    return {**options, **held}


def _shape(query: Any, key: Any, value: Any, options: Mapping[str, Any]) -> Shape:
    heads, rows = (1, 2) if options.get("layout", "BHND") == "BHND" else (2, 1)
    return Shape(
        batch=query.shape[0],
        heads=query.shape[heads],
        key_heads=key.shape[heads],
        queries=query.shape[rows],
        keys=key.shape[rows],
        dim=query.shape[3],
        value_dim=value.shape[3],
    )


def _valid(mask: Any, b: int, rows: int) -> NDArray[np.bool_]:
    return np.ones(rows, np.bool_) if mask is None else np.asarray(mask[b], np.bool_)


def _float64(array: Any) -> NDArray[np.float64]:
    # A tensor is widened by PyTorch, since NumPy has no bfloat16.
    array = detached(array)
    return np.asarray(array.double() if hasattr(array, "double") else array, np.float64)
