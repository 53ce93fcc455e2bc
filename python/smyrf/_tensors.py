"""Calls with PyTorch tensors; `_arrays` has those with NumPy arrays."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from smyrf import _core, _environment
from smyrf._call import MASKS, PARTS, Inputs, check_arrays, lse_shape, pack, plain
from smyrf._operator import (
    NO_MASK_GRADIENT,
    NO_TANGENT,
    SmyrfAttention,
    call_operator,
    empty_out,
    export,
    export_rows,
    exported,
    is_recorded,
    needs_operator,
    run,
)
from smyrf._shapes import is_plain, shaped, shaped_parts
from smyrf._types import Layout


def attention(
    inputs: Inputs,
    options: dict[str, Any],
    plan: _core.Plan | None,
    out: torch.Tensor | None,
    return_lse: bool,
    return_stats: bool,
) -> Any:
    """`smyrf.attention` for tensors; see there.

    A call is one of the operator where that is needed, else one of the core. Calls with plan, out
    or return_stats are always of the core, since operators take and give nothing but tensors.
    """
    query, key, value = inputs
    masks = {name: options[name] for name in MASKS}
    check_arrays(torch.Tensor, query=query, key=key, value=value, **masks, out=out)
    _check_differentiation(query, key, value, options["attn_mask"])
    if torch.is_autocast_enabled("cpu"):
        query, key, value = _autocast(query), _autocast(key), _autocast(value)
    if query.dtype == torch.float64:
        raise TypeError(
            "query: got dtype float64, expected float32, float16 or bfloat16; convert it, or call "
            "smyrf.reference.attention, which computes in float64"
        )
    needs_gradient = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    )
    # A tolerance bounds the error of out, not that of gradients: without one asked for, a call that
    # may need gradients is exact. A trace may run with gradients or without.
    if (
        plan is None
        and options["method"] == "auto"
        and options["tolerance"] is None
        and (needs_gradient or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
    ):
        options = {**options, "tolerance": 0.0}
    options = _environment.completed(options, plan)
    given_out = out
    call = None if is_plain(query, key, value, options) else shaped(query, key, value, options)
    if call is not None:
        query, key, value, options, _ = call
        out = None if out is None else call.view_of_out(out)
    statistics = None
    only_tensors = plan is None and out is None and not return_stats
    if only_tensors and (
        needs_operator(query, key, value, *masks.values())
        # The profiler shows a call with gradients anyway, by the name of its Function.
        or (torch._C._autograd._profiler_enabled() and not needs_gradient)
    ):
        out, lse = _by_operator(query, key, value, options)
    else:
        out, lse, statistics = _directly(
            (query, key, value), out, options, plan, return_lse, return_stats, needs_gradient
        )
    if call is not None:
        out, lse = call.restored(out, lse)
    if given_out is not None:
        out = given_out
    return pack(out, lse if return_lse else None, statistics if return_stats else None)


def _by_operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
) -> Any:
    """(out, lse)."""
    # The schema takes more than the core: Fraction(3, 2) for 1, a set for a pair. Numbers of a
    # graph may be unknown yet, so they are not looked at.
    if not (torch.compiler.is_compiling() or is_recorded()):
        _core.check_options(options)
    options = plain(options)
    for name in ("is_causal", "enable_gqa"):
        if not isinstance(options[name], bool):  # the schema would take None for False
            raise TypeError(f"{name}: got {options[name]!r}, expected True or False")
    try:
        return call_operator(query, key, value, options)
    except RuntimeError as error:
        # An option of a type that the schema refuses: the core has a sentence for it.
        if type(error) is RuntimeError and not torch.compiler.is_compiling():
            try:
                _core.check_options(options)
            except (TypeError, ValueError) as sentence:
                raise sentence from None
        raise


def _directly(
    inputs: Inputs,
    out: torch.Tensor | None,
    options: dict[str, Any],
    plan: _core.Plan | None,
    return_lse: bool,
    return_stats: bool,
    needs_gradient: bool,
) -> Any:
    """(out, lse or None, statistics or None) of a call of the core, which no graph can hold."""
    query, key, value = inputs
    if torch.compiler.is_compiling() or is_recorded():
        raise NotImplementedError(
            "plan, out and return_stats can't be part of a compiled graph or a trace; leave them "
            "out there"
        )
    if out is not None and torch.is_grad_enabled() and (needs_gradient or out.requires_grad):
        raise NotImplementedError(
            "out gives no gradient; leave it out, or call under torch.no_grad()"
        )
    if needs_gradient:
        return SmyrfAttention.apply(query, key, value, options, plan, return_stats)  # type: ignore[no-untyped-call]
    if out is None:
        out = empty_out(query, key, value, options)
    elif out.is_neg():
        raise TypeError("out: is a view that is negated when read; pass a tensor of its own")
    elif not out.is_inference():
        # If autograd saved out for a backward pass, that must notice that out was overwritten.
        torch.autograd.graph.increment_version(out)
    lse = None
    if return_lse:
        lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
    statistics, _ = run(inputs, out, lse, options, plan, return_stats)
    return out, lse, statistics


def _check_differentiation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None
) -> None:
    """Raise NotImplementedError for derivatives that there are none of."""
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(NO_MASK_GRADIENT)
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    for tensor in (query, key, value, attn_mask):
        if tensor is None:
            continue
        if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(NO_TANGENT)


def planned(
    call: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """`smyrf.plan` or `smyrf.estimate` for tensors; `call` is the core's function of that name."""
    given: dict[str, Any] = {"key": key} if value is None else {"key": key, "value": value}
    check_arrays(torch.Tensor, query=query, **given, **{name: options[name] for name in MASKS})
    options = _environment.completed(options)
    seen = None if is_plain(query, key, value, options) else shaped(query, key, value, options)
    if seen is not None:
        query, key, value, options, _ = seen
    return call(*export_rows(query, key, value), exported(options))


def merge(
    out: Any,
    lse: Any,
    other_out: Any,
    other_lse: Any,
    layout: Layout,
    num_threads: int | None,
) -> tuple[Any, Any]:
    """`smyrf.merge` for tensors; see there."""
    if torch.compiler.is_compiling() or is_recorded():
        raise NotImplementedError(
            "merge can't be part of a compiled graph or a trace; call it outside"
        )
    others = {"lse": lse, "other_out": other_out, "other_lse": other_lse}
    check_arrays(torch.Tensor, PARTS, out=out, **others)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, *others.values())):
        raise NotImplementedError("merge gives no gradient; call it under torch.no_grad()")
    out = out.detach().clone(memory_format=torch.contiguous_format)
    lse = lse.detach().clone(memory_format=torch.contiguous_format)
    parts = shaped_parts((out, lse, other_out, other_lse), layout)
    num_threads = _environment.threads(num_threads)
    _core.merge(
        export("out", parts[0]),
        export("lse", parts[1]),
        export("other_out", parts[2], rows=True),
        export("other_lse", parts[3]),
        layout,
        torch.get_num_threads() if num_threads is None else num_threads,
    )
    return out, lse


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """The cast that PyTorch's operators do under autocast: of floats, but not of float64."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))
