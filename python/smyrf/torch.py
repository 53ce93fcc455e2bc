"""PyTorch: the operator `smyrf::attention`, for eager mode, autocast and torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from smyrf import _core, collector
from smyrf._call import PARTS, check_arrays, detached, lse_shape, output_shape, pack

_SCHEMA = (
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, "
    "Tensor? key_padding_mask, Tensor? query_padding_mask, bool is_causal, float? scale, "
    "bool enable_gqa, str method, SymInt? n_hashes, SymInt? cluster_size, float? tolerance, "
    "float? max_density, SymInt seed, SymInt[]? window, str layout, "
    "SymInt? num_threads) -> (Tensor out, Tensor lse)"
)
_NAMES = (
    "attn_mask",
    "key_padding_mask",
    "query_padding_mask",
    "is_causal",
    "scale",
    "enable_gqa",
    "method",
    "n_hashes",
    "cluster_size",
    "tolerance",
    "max_density",
    "seed",
    "window",
    "layout",
    "num_threads",
)

_NO_GRADIENT = (
    "smyrf.attention has no backward in this release; call it under torch.no_grad(), or train "
    "with torch.nn.functional.scaled_dot_product_attention"
)

torch.library.define("smyrf::attention", _SCHEMA.removeprefix("attention"))


# For every device, so that our sentence and not the dispatcher's says that only the CPU will do.
@torch.library.impl("smyrf::attention", "default")
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    out = query.new_empty(output_shape(query, value))
    lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
    _run(query, key, value, out, lse, options, None, False)
    return out, lse


def _attention_fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    tensors = {"key": key, "value": value} | {name: options[name] for name in _NAMES[:3]}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != query.device:
            raise TypeError(
                f"{name}: lies on {tensor.device}, query on {query.device}; move one of them"
            )
    out = query.new_empty(output_shape(query, value))
    return out, query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)


torch.library.register_fake("smyrf::attention", _attention_fake)


# The backward pass is an operator too, which raises when it runs: a graph that is compiled forward
# and backward at once must not raise before anyone asks for gradients.
torch.library.define("smyrf::attention_backward", "(Tensor gradient, Tensor[] inputs) -> Tensor[]")


@torch.library.impl("smyrf::attention_backward", "default")
def _attention_backward(gradient: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    raise NotImplementedError(_NO_GRADIENT)


def _attention_backward_fake(
    gradient: torch.Tensor, inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in inputs]


torch.library.register_fake("smyrf::attention_backward", _attention_backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.count = len(inputs)
    ctx.save_for_backward(*(tensor for tensor in inputs[:4] if tensor is not None))


def _backward(ctx: Any, gradient: torch.Tensor, lse_gradient: torch.Tensor) -> Any:
    gradients = torch.ops.smyrf.attention_backward(gradient, list(ctx.saved_tensors))
    return *gradients, *[None] * (ctx.count - len(gradients))


torch.library.register_autograd("smyrf::attention", _backward, setup_context=_setup_context)


def _export(name: str, tensor: torch.Tensor | None) -> Any:
    """A DLPack capsule of a tensor's memory: a quarter of the time of `Tensor.__dlpack__`."""
    if tensor is None:
        return None
    if not tensor.is_cpu or tensor.layout != torch.strided:
        raise TypeError(
            f"{name}: got a {tensor.layout} tensor on {tensor.device}, expected a strided one on "
            "the CPU; call .cpu() or .to_dense()"
        )
    try:
        return to_dlpack(detached(tensor))
    except RuntimeError:
        raise TypeError(
            f"{name}: has no memory of its own, as inside transforms of torch.func; of these only "
            "vmap is supported, without plan, out and return_stats"
        ) from None


def _exported(options: dict[str, Any]) -> dict[str, Any]:
    """The options as the core takes them."""
    exported = options | {name: _export(name, options[name]) for name in _NAMES[:3]}
    if exported["num_threads"] is None:
        exported["num_threads"] = torch.get_num_threads()
    return exported


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    options: dict[str, Any],
    plan: _core.Plan | None,
    return_stats: bool,
) -> _core.Statistics | None:
    """One call of the core; values only, no graph."""
    collecting = collector.active()
    statistics = _core.attention(
        _export("query", query),
        _export("key", key),
        _export("value", value),
        _export("out", out),
        _export("lse", lse),
        plan,
        return_stats or collecting is not None,
        _exported(options),
    )
    if collecting is not None and statistics is not None:
        collecting.add(statistics, query, key, value, out, {**options, "plan": plan})
    return statistics


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
    plan: _core.Plan | None,
    out: torch.Tensor | None,
    return_lse: bool,
    return_stats: bool,
) -> Any:
    """`smyrf.attention` for tensors; see there.

    Calls the operator. `plan`, `out` and `return_stats` are not tensors' business: such calls go to
    the core directly, outside graphs and gradients.
    """
    masks = {name: options[name] for name in _NAMES[:3]}
    check_arrays(torch.Tensor, key=key, value=value, **masks, out=out)
    if not torch.compiler.is_compiling():
        for tensor in (query, key, value):
            tangent = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
            if tangent is not None:
                raise NotImplementedError(_NO_GRADIENT)
    for name in ("is_causal", "enable_gqa"):
        if not isinstance(options[name], bool):  # the schema would take None for False
            raise TypeError(f"{name}: got {options[name]!r}, expected True or False")
    if torch.is_autocast_enabled("cpu"):
        query, key, value = _autocast(query), _autocast(key), _autocast(value)
    if plan is None and out is None and not return_stats:
        try:
            result, lse = torch.ops.smyrf.attention(
                query, key, value, *(options[name] for name in _NAMES)
            )
        except RuntimeError as error:
            # An option of a type that the schema refuses: the core has a sentence for it.
            if type(error) is RuntimeError and not torch.compiler.is_compiling():
                try:
                    _core.plan(
                        _export("query", query),
                        _export("key", key),
                        _export("value", value),
                        _exported(options),
                    )
                except (TypeError, ValueError) as sentence:
                    raise sentence from None
            raise
        return (result, lse) if return_lse else result

    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "plan, out and return_stats can't be part of a compiled graph; leave them out there"
        )
    tensors = (query, key, value, options["attn_mask"], out)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise NotImplementedError(
            "plan, out and return_stats give no gradient; call under torch.no_grad()"
        )
    if out is None:
        out = query.new_empty(output_shape(query, value))
    elif out.is_neg():
        raise TypeError("out: is a view that is negated when read; pass a tensor of its own")
    elif not out.is_inference():
        # What autograd saved of it for a backward pass is no longer there.
        torch.autograd.graph.increment_version(out)
    lse = None
    if return_lse:
        lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
    statistics = _run(query, key, value, out, lse, options, plan, return_stats)
    return pack(out, lse, statistics if return_stats else None)


def planned(
    call: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """`smyrf.plan` and `smyrf.estimate` for tensors: `call` is the core's function."""
    given: dict[str, Any] = {"key": key} if value is None else {"key": key, "value": value}
    check_arrays(torch.Tensor, **given, **{name: options[name] for name in _NAMES[:3]})
    rows = (_export(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
    return call(*rows, _exported(options))


def merge(
    out: torch.Tensor,
    lse: Any,
    other_out: Any,
    other_lse: Any,
    layout: str,
    num_threads: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`smyrf.merge` for tensors; see there."""
    if torch.compiler.is_compiling():
        raise NotImplementedError("merge can't be part of a compiled graph; call it outside")
    others = {"lse": lse, "other_out": other_out, "other_lse": other_lse}
    check_arrays(torch.Tensor, PARTS, out=out, **others)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, *others.values())):
        raise NotImplementedError("merge gives no gradient; call it under torch.no_grad()")
    out = out.detach().clone(memory_format=torch.contiguous_format)
    lse = lse.detach().clone(memory_format=torch.contiguous_format)
    _core.merge(
        _export("out", out),
        _export("lse", lse),
        _export("other_out", other_out),
        _export("other_lse", other_lse),
        layout,
        torch.get_num_threads() if num_threads is None else num_threads,
    )
    return out, lse


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """The cast that PyTorch's own operators do: float64 and integers stay what they are."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))
