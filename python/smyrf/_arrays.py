"""Calls with NumPy arrays; `_tensors` has those with PyTorch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from smyrf import _core, _environment
from smyrf._call import MASKS, PARTS, Inputs, check_arrays, lse_shape, output_shape, pack
from smyrf._shapes import is_plain, rows, shaped, shaped_parts
from smyrf._types import Layout
from smyrf.collector import active


def attention(
    inputs: Inputs,
    options: dict[str, Any],
    plan: _core.Plan | None,
    out: Any,
    return_lse: bool,
    return_stats: bool,
) -> Any:
    """`smyrf.attention` for arrays; see there."""
    query, key, value = inputs
    check_arrays(
        np.ndarray,
        query=query,
        key=key,
        value=value,
        attn_mask=options["attn_mask"],
        key_padding_mask=options["key_padding_mask"],
        query_padding_mask=options["query_padding_mask"],
        out=out,
    )
    options = _environment.completed(options, plan)
    given_out = out
    call = None if is_plain(query, key, value, options) else shaped(query, key, value, options)
    if call is not None:
        query, key, value, options, _ = call
        out = None if out is None else call.view_of_out(out)
    if not (query.flags.c_contiguous and key.flags.c_contiguous and value.flags.c_contiguous):
        query, key, value = rows(query), rows(key), rows(value)
    if out is None:
        out = np.empty(output_shape(query, value), query.dtype)
    lse = np.empty(lse_shape(query, options["layout"]), np.float32) if return_lse else None
    collecting = active()
    first = _environment.is_first(options, plan, query, key)
    wanted = return_stats or first or collecting is not None
    statistics = _core.attention(query, key, value, out, lse, plan, wanted, options)
    if first:
        _environment.say_first(statistics, options)
    if collecting is not None and statistics is not None:
        collecting.add(statistics, query, key, value, out, {**options, "plan": plan})
    if call is not None:
        out, lse = call.restored(out, lse)
    return pack(out if given_out is None else given_out, lse, statistics if return_stats else None)


def planned(call: Any, query: Any, key: Any, value: Any, options: dict[str, Any]) -> Any:
    """`smyrf.plan` or `smyrf.estimate` for arrays; `call` is the core's function of that name."""
    given = {"key": key} if value is None else {"key": key, "value": value}
    masks = {name: options[name] for name in MASKS}
    check_arrays(np.ndarray, query=query, **given, **masks)
    options = _environment.completed(options)
    seen = None if is_plain(query, key, value, options) else shaped(query, key, value, options)
    if seen is not None:
        query, key, value, options, _ = seen
    return call(rows(query), rows(key), rows(value), options)


def merge(
    out: Any, lse: Any, other_out: Any, other_lse: Any, layout: Layout, num_threads: int | None
) -> tuple[Any, Any]:
    """`smyrf.merge` for arrays; see there."""
    check_arrays(np.ndarray, PARTS, out=out, lse=lse, other_out=other_out, other_lse=other_lse)
    out, lse = np.array(out, order="C"), np.array(lse, order="C")
    parts = shaped_parts((out, lse, other_out, other_lse), layout)
    num_threads = _environment.threads(num_threads)
    _core.merge(parts[0], parts[1], rows(parts[2]), parts[3], layout, num_threads)
    return out, lse
