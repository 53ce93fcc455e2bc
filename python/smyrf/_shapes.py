"""Makes arrays of any rank, and dimensions of 1 that broadcast, into what the core takes.

The core takes query, key and value of four dimensions, with one batch and contiguous rows. Arrays
that it takes, or refuses with a sentence of its own, stay as they are. Arrays are NumPy's or
PyTorch's. All that is done to tensors is done by operations that autograd knows.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

from smyrf._call import is_tensor
from smyrf._types import Layout

Sizes = tuple[int, ...]


def is_plain(query: Any, key: Any, value: Any, options: dict[str, Any]) -> bool:
    """Whether the core takes the shapes as they are. `value` may be None."""
    q, k = query.shape, key.shape
    v = k if value is None else value.shape
    if q == k == v and len(q) == 4:  # most calls
        return bool(q[3] > 0)
    if not len(q) == len(k) == len(v) == 4 or q[3] == 0 or v[3] == 0:
        return False
    heads = 2 if options["layout"] == "BNHD" else 1
    if q[0] != k[0] or q[0] != v[0] or k[heads] != v[heads]:
        return False
    return bool(q[heads] == k[heads] or options["enable_gqa"])


def rows(array: Any) -> Any:
    """A NumPy array with a contiguous last dimension: the array itself, or a copy."""
    if array is None or array.flags.c_contiguous or array.strides[-1] == array.itemsize:
        return array
    return array if array.shape[-1] <= 1 else np.ascontiguousarray(array)


class Form(NamedTuple):
    """What the dimensions of a call mean.

    Attributes:
        rank: dimensions of out.
        batch: the sizes whose product is the core's batch.
        heads: query heads.
        has_heads: whether one of the dimensions counts heads; otherwise there is one head.
        heads_last: layout BNHD.
        no_values: Dv is 0; the core gets one column of zeros.
    """

    rank: int
    batch: Sizes
    heads: int
    has_heads: bool
    heads_last: bool
    no_values: bool = False

    def out_shape(self, queries: int, depth: int) -> Sizes:
        if not self.has_heads:
            return (*self.batch, queries, depth)
        inner = (queries, self.heads) if self.heads_last else (self.heads, queries)
        return (*self.batch, *inner, depth)

    def core_shape(self, queries: int, depth: int) -> Sizes:
        inner = (queries, self.heads) if self.heads_last else (self.heads, queries)
        return (math.prod(self.batch), *inner, depth)

    def lse_shape(self, queries: int) -> Sizes:
        return (*self.batch, *((self.heads,) if self.has_heads else ()), queries)


class Shaped(NamedTuple):
    """A call as the core takes it, and the form that its results must have."""

    query: Any
    key: Any
    value: Any
    options: dict[str, Any]
    form: Form

    @property
    def _sizes(self) -> tuple[int, int]:
        rows_axis = 1 if self.form.heads_last else 2
        return self.query.shape[rows_axis], 0 if self.form.no_values else self.value.shape[3]

    def view_of_out(self, out: Any) -> Any:
        """The caller's out in the core's shape, in the same memory. None if out has no columns.

        Raises:
            ValueError: out has another shape than the result, or can't be seen in the core's.
        """
        expected = self.form.out_shape(*self._sizes)
        if tuple(out.shape) != expected:
            raise ValueError(f"out: got shape {tuple(out.shape)}, expected {expected}")
        if self.form.no_values:
            return None
        shape = self.form.core_shape(*self._sizes)
        try:
            view = out.view(shape) if is_tensor(out) else out.reshape(shape)
        except RuntimeError:
            view = None
        if view is None or (view.size and not is_tensor(out) and not np.shares_memory(view, out)):
            raise ValueError(
                "out: its leading dimensions can't be seen as one batch, which takes no copy only "
                "if each continues the next; pass a contiguous one"
            )
        return view

    def restored(self, out: Any, lse: Any) -> tuple[Any, Any]:
        """The core's results in the shapes of the call; tensors contiguous, as PyTorch's are."""
        if self.form.no_values:
            out = out[..., :0]
        out = out.reshape(self.form.out_shape(*self._sizes))
        if is_tensor(out):
            out = out.contiguous()
        if lse is not None:
            lse = lse.reshape(self.form.lse_shape(self._sizes[0]))
        return out, lse


def shaped(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Shaped | None:
    """The call, broadcast as `scaled_dot_product_attention` does it. `value` may be None.

    None if the core will refuse the shapes: its sentence says more.

    Raises:
        TypeError: fewer dimensions than two, or more in a mask than in the call.
        ValueError: sizes that disagree.
    """
    arrays = {"query": query, "key": key, "value": value}
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if array.ndim < 2:
            raise TypeError(
                f"{name}: got {array.ndim} dimensions {tuple(array.shape)}, expected at least 2: "
                "(N, D), (batch, N, D), (batch, heads, N, D), or more before them"
            )
    rank = max(array.ndim for array in given.values())
    heads_last = options["layout"] == "BNHD"
    has_heads = rank >= 4 or (rank == 3 and bool(heads_last or options["enable_gqa"]))
    headed = {name: _with_heads(x, has_heads, heads_last) for name, x in given.items()}
    form = _form(given, headed, options, Form(rank, (), 1, has_heads, heads_last))
    if form is None:
        return None
    expanded = _expanded(headed, form, bool(options["enable_gqa"]))
    if query.shape[-1] == 0 and key.shape[-1] == 0:  # all logits are 0
        expanded |= {name: _column_of_zeros(expanded[name]) for name in ("query", "key")}
        options = {**options, "scale": 1.0 if options["scale"] is None else options["scale"]}
    if value is not None and value.shape[-1] == 0:
        expanded["value"] = _column_of_zeros(expanded["value"])
        form = form._replace(no_values=True)
    options = {
        **options,
        "attn_mask": _attn_mask(options["attn_mask"], form),
        "key_padding_mask": _padding("key_padding_mask", options, headed["key"], form),
        "query_padding_mask": _padding("query_padding_mask", options, headed["query"], form),
    }
    return Shaped(expanded["query"], expanded["key"], expanded.get("value"), options, form)


def _with_heads(array: Any, has_heads: bool, heads_last: bool) -> Any:
    """(..., heads, N, D), or (..., N, heads, D)."""
    if has_heads and array.ndim >= 3:
        return array
    return array[..., None, :] if heads_last else array[..., None, :, :]


def _form(
    given: dict[str, Any], headed: dict[str, Any], options: dict[str, Any], form: Form
) -> Form | None:
    """The form of a call whose sizes agree. None if they don't, and the core will say so."""
    all_four = all(array.ndim == 4 for array in given.values())
    heads_axis, rows_axis = (-2, -3) if form.heads_last else (-3, -2)
    grouped = bool(options["enable_gqa"])
    query, key, value = (headed.get(name) for name in ("query", "key", "value"))
    batch: Sizes = ()
    heads: Sizes = (1,)
    for name, array in headed.items():
        wider = _broadcast(batch, tuple(array.shape[:-3]))
        more: Sizes | None = heads
        if not grouped or name == "query":
            more = _broadcast(heads, (array.shape[heads_axis],))
        if wider is not None and more is not None:
            batch, heads = wider, more
        else:
            if all_four:
                return None
            raise ValueError(
                f"{name}: got shape {tuple(given[name].shape)}, whose batch or heads do not "
                f"broadcast with those of query {tuple(given['query'].shape)}"
                + ("" if grouped else "; grouped queries need enable_gqa=True")
            )
    if grouped and any(
        x is not None and (x.shape[heads_axis] == 0 or heads[0] % x.shape[heads_axis])
        for x in (key, value)
    ):
        if all_four:
            return None
        raise ValueError(
            f"query: got {heads[0]} heads, expected a multiple of those of key and value"
        )
    if not all_four:
        _check_rows(given, query, key, value, rows_axis)
    return form._replace(batch=batch, heads=heads[0])


def _check_rows(given: dict[str, Any], query: Any, key: Any, value: Any, rows_axis: int) -> None:
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key: got shape {tuple(given['key'].shape)}, expected the head dimension of query, "
            f"{query.shape[-1]}, as its last"
        )
    if value is not None and value.shape[rows_axis] != key.shape[rows_axis]:
        raise ValueError(
            f"value: got shape {tuple(given['value'].shape)}, which has {value.shape[rows_axis]} "
            f"rows, expected {key.shape[rows_axis]} like key"
        )


def _broadcast(*shapes: Sizes) -> Sizes | None:
    """The common shape by the usual rules; None if there is none."""
    rank = max(len(shape) for shape in shapes)
    common = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape, rank - len(shape)):
            if size == 1:
                continue
            if common[i] not in (1, size):
                return None
            common[i] = size
    return tuple(common)


def _expanded(headed: dict[str, Any], form: Form, grouped: bool) -> dict[str, Any]:
    """The arrays, with the batch as one dimension; key and value have the same heads."""
    heads_axis = -2 if form.heads_last else -3
    key_heads = form.heads
    if grouped:
        key_heads = math.lcm(*(int(x.shape[heads_axis]) for n, x in headed.items() if n != "query"))
    expanded = {}
    for name, array in headed.items():
        heads = form.heads if name == "query" else key_heads
        if array.shape[heads_axis] not in (1, heads):
            times = heads // array.shape[heads_axis]
            array = (
                array.repeat_interleave(times, heads_axis)
                if is_tensor(array)
                else np.repeat(array, times, heads_axis)
            )
        inner = list(array.shape[-3:])
        inner[heads_axis] = heads
        array = _expand(array, (*form.batch, *inner))
        expanded[name] = array.reshape((math.prod(form.batch), *inner))
    return expanded


def _column_of_zeros(array: Any) -> Any:
    """An array without columns, with one column of zeros."""
    if is_tensor(array):
        return sys.modules["torch"].nn.functional.pad(array, (0, 1))
    return np.zeros((*array.shape[:-1], 1), array.dtype)


def _expand(array: Any, shape: Sizes) -> Any:
    return array.expand(shape) if is_tensor(array) else np.broadcast_to(array, shape)


def _attn_mask(mask: Any, form: Form) -> Any:
    """The mask with its batch, where it has one, as one dimension."""
    if mask is None:
        return None
    if mask.ndim > form.rank:
        raise TypeError(
            f"attn_mask: got {mask.ndim} dimensions {tuple(mask.shape)}, at most {form.rank}, as "
            "many as the call has"
        )
    if not form.has_heads and mask.ndim == 3:
        return mask[:, None]
    if len(form.batch) <= 1 or mask.ndim <= 3:
        return mask
    batch = tuple(mask.shape[:-3])
    if math.prod(batch) == 1:
        return mask.reshape(mask.shape[-3:])
    if _broadcast(batch, form.batch) != form.batch:
        raise ValueError(
            f"attn_mask: got shape {tuple(mask.shape)}, expected a batch that broadcasts to "
            f"{form.batch}"
        )
    inner = tuple(mask.shape[-3:])
    return _expand(mask, (*form.batch, *inner)).reshape((math.prod(form.batch), *inner))


def _padding(name: str, options: dict[str, Any], array: Any, form: Form) -> Any:
    """A padding mask (*batch, N) as (batch, N). Its batch is the call's, or that of `array`."""
    mask = options[name]
    if mask is None:
        return None
    own = (1,) * (len(form.batch) - len(array.shape[:-3])) + tuple(array.shape[:-3])
    count = array.shape[-3 if form.heads_last else -2]
    if tuple(mask.shape) not in ((*form.batch, count), (*own, count)):
        raise ValueError(
            f"{name}: got shape {tuple(mask.shape)}, expected {(*form.batch, count)} = (batch, "
            f"{'Nk' if name.startswith('key') else 'Nq'})"
        )
    return _expand(mask, (*form.batch, count)).reshape((math.prod(form.batch), count))


def shaped_parts(parts: tuple[Any, Any, Any, Any], layout: Layout) -> tuple[Any, ...]:
    """The arrays of `merge` (out, lse, other_out, other_lse), as the core takes them."""
    rank = parts[0].ndim
    if (
        rank == 4
        or rank < 2
        or any(x.shape != y.shape for x, y in zip(parts[:2], parts[2:], strict=True))
    ):
        return parts
    *batch, rows_, depth = parts[0].shape
    if layout == "BNHD" and rank > 2:
        *batch, rows_, heads, depth = parts[0].shape
        lse_shape = (math.prod(batch), heads, rows_)
        out_shape = (math.prod(batch), rows_, heads, depth)
    elif layout == "BNHD":
        lse_shape, out_shape = (1, 1, rows_), (1, rows_, 1, depth)
    else:
        lse_shape = (1, math.prod(batch), rows_)
        out_shape = (*lse_shape, depth)
    return tuple(x.reshape(s) for x, s in zip(parts, (out_shape, lse_shape) * 2, strict=True))
