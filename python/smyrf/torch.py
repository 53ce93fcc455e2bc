"""PyTorch: the operator `smyrf::attention`, for eager mode, autocast and torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.dlpack import to_dlpack

from smyrf import _core, collector
from smyrf._call import check_arrays, lse_shape, output_shape, pack

_SCHEMA = (
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, "
    "Tensor? key_padding_mask, Tensor? query_padding_mask, bool is_causal, float? scale, "
    "bool enable_gqa, str method, SymInt? n_hashes, SymInt? cluster_size, SymInt seed, "
    "SymInt[]? window, str layout, SymInt? num_threads) -> (Tensor out, Tensor lse)"
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
    "seed",
    "window",
    "layout",
    "num_threads",
)

torch.library.define("smyrf::attention", _SCHEMA.removeprefix("attention"))


@torch.library.impl("smyrf::attention", "CPU")
def _attention_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    out = torch.empty(output_shape(query, value), dtype=query.dtype)
    lse = torch.empty(lse_shape(query, options["layout"]), dtype=torch.float32)
    _run(query, key, value, out, lse, options, None, False)
    return out, lse


@torch.library.register_fake("smyrf::attention")
def _attention_fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    out = query.new_empty(output_shape(query, value))
    return out, query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)


def _backward(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise NotImplementedError(
        "smyrf.attention has no backward in this release; call it under torch.no_grad(), or train "
        "with torch.nn.functional.scaled_dot_product_attention"
    )


torch.library.register_autograd("smyrf::attention", _backward)


def _export(name: str, tensor: torch.Tensor | None) -> Any:
    """A DLPack capsule of a tensor's memory: a quarter of the time of `Tensor.__dlpack__`."""
    if tensor is None:
        return None
    if not tensor.is_cpu or tensor.layout != torch.strided:
        raise TypeError(
            f"{name}: got a {tensor.layout} tensor on {tensor.device}, expected a strided one on "
            "the CPU; call .cpu() or .to_dense()"
        )
    return to_dlpack(tensor.detach())


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
    arrays = {name: _export(name, options[name]) for name in _NAMES[:3]}
    if options["num_threads"] is None:
        arrays["num_threads"] = torch.get_num_threads()
    statistics = _core.attention(
        _export("query", query),
        _export("key", key),
        _export("value", value),
        _export("out", out),
        _export("lse", lse),
        **{**options, **arrays},
        plan=plan,
        with_statistics=return_stats or collecting is not None,
    )
    if collecting is not None:
        collecting.add(statistics, query, key, value, out, options)
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
    attn_mask = options["attn_mask"]
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if plan is None and out is None and not return_stats:
        tensors = {"key": key, "value": value} | {name: options[name] for name in _NAMES[:3]}
        check_arrays(torch.Tensor, **tensors)
        result, lse = torch.ops.smyrf.attention(
            query, key, value, *(options[name] for name in _NAMES)
        )
        return (result, lse) if return_lse else result

    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "plan, out and return_stats can't be part of a compiled graph; leave them out there"
        )
    inputs = [query, key, value] + ([attn_mask] if attn_mask is not None else [])
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise NotImplementedError(
            "plan, out and return_stats give no gradient; call under torch.no_grad()"
        )
    check_arrays(torch.Tensor, key=key, value=value, out=out)
    if out is None:
        out = torch.empty(output_shape(query, value), dtype=query.dtype)
    rows = torch.empty(lse_shape(query, options["layout"])) if return_lse else None
    statistics = _run(query, key, value, out, rows, options, plan, return_stats)
    return pack(out, rows, statistics if return_stats else None)
