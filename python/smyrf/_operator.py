"""The operator `smyrf::attention` with its derivative, and calls of the core with tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from smyrf import _core, _environment, collector
from smyrf._call import MASKS, Inputs, detached, lse_shape, output_shape, plain

_OPTIONS = (
    "Tensor? attn_mask, Tensor? key_padding_mask, Tensor? query_padding_mask, bool is_causal, "
    "float? scale, bool enable_gqa, str method, SymInt? n_hashes, SymInt? cluster_size, "
    "float? tolerance, float? max_density, SymInt seed, SymInt[]? window, str layout, "
    "SymInt? num_threads, float dropout_p, SymInt[]? positions, str? precision"
)
_NAMES = (
    *MASKS,
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
    "dropout_p",
    "positions",
    "precision",
)

NO_TANGENT = (
    "smyrf.attention has no forward-mode derivative; use reverse mode (backward), or "
    "torch.nn.functional.scaled_dot_product_attention"
)
_NO_SECOND_DERIVATIVE = (
    "smyrf.attention has no second derivative; leave create_graph out, or use "
    "torch.nn.functional.scaled_dot_product_attention"
)
NO_MASK_GRADIENT = (
    "attn_mask: requires a gradient, which smyrf.attention doesn't give; detach it, or use "
    "torch.nn.functional.scaled_dot_product_attention"
)


# Modes that see a program before autograd does, as those of torch.export, set this key.
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


def needs_operator(*tensors: torch.Tensor | None) -> bool:
    """Whether a call must be one of the operator, since something works on a program's operators.

    Compilers, tracers, transforms of torch.func and modes do, and tensors that are no plain ones of
    the CPU. Other calls go to the core directly: dispatching takes longer than a short call.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
        or not all(map(_is_plain, tensors))
    )


def is_recorded() -> bool:
    """Whether a tracer makes a graph of the program, of operators alone."""
    if torch._C._is_tracing():
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # loaded where one traces
    return proxies is not None and proxies.get_proxy_mode() is not None


def _is_plain(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor has no class, device or memory that the dispatcher must look at."""
    return tensor is None or (
        (type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter)
        and tensor.is_cpu
        and not tensor._is_zerotensor()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # of is_grads_batched
    )


torch.library.define(
    "smyrf::attention",
    f"(Tensor query, Tensor key, Tensor value, {_OPTIONS}) -> (Tensor out, Tensor lse)",
)
torch.library.define(
    "smyrf::attention_backward",
    "(Tensor grad_out, Tensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, "
    f"Tensor lse, {_OPTIONS}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
)


# For every device: the core's sentence says that it needs the CPU, and not the dispatcher's.
@torch.library.impl("smyrf::attention", "default")
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    out = empty_out(query, key, value, options)
    lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
    run((query, key, value), out, lse, options, None, False)
    return out, lse


def _attention_fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    tensors = {"key": key, "value": value} | {name: options[name] for name in MASKS}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != query.device:
            raise TypeError(
                f"{name}: lies on {tensor.device}, query on {query.device}; move one of them"
            )
    out = empty_out(query, key, value, options)
    return out, query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)


torch.library.register_fake("smyrf::attention", _attention_fake)


@torch.library.impl("smyrf::attention_backward", "default")
def _attention_backward(
    grad_out: torch.Tensor, grad_lse: torch.Tensor, *inputs: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, inputs[5:], strict=True))
    return _run_backward(grad_out, grad_lse, inputs[:5], options, None)


def _attention_backward_fake(
    grad_out: torch.Tensor, grad_lse: torch.Tensor, *inputs: Any
) -> tuple[torch.Tensor, ...]:
    return tuple(_empty_like(tensor) for tensor in inputs[:3])


torch.library.register_fake("smyrf::attention_backward", _attention_backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, key, value, *values = inputs
    if ctx.needs_input_grad[3]:
        raise NotImplementedError(NO_MASK_GRADIENT)
    masks, ctx.values = values[: len(MASKS)], values[len(MASKS) :]
    ctx.save_for_backward(query, key, value, *output, *masks)


def _backward(ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor) -> Any:
    saved = ctx.saved_tensors
    gradients = torch.ops.smyrf.attention_backward(grad_out, grad_lse, *saved, *ctx.values)
    return *gradients, *[None] * len(_NAMES)


def _second_derivative(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise NotImplementedError(_NO_SECOND_DERIVATIVE)


torch.library.register_autograd("smyrf::attention", _backward, setup_context=_setup_context)
torch.library.register_autograd("smyrf::attention_backward", _second_derivative)


class SmyrfAttention(torch.autograd.Function):
    """A call of the core with gradients. Profiles show it by this name.

    It keeps the plan that `tree` made for the first backward, which would make it again. The
    operator can't: it takes and gives nothing but tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: dict[str, Any],
        plan: _core.Plan | None,
        return_stats: bool,
    ) -> Any:
        out = empty_out(query, key, value, options)
        lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
        # Where saved tensors have hooks, as in checkpoints, memory is dear.
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        plans = plan is None and options["method"] in ("auto", "tree") and options["tolerance"] != 0
        statistics, ctx.plan = run(
            (query, key, value),
            out,
            lse,
            options,
            plan,
            return_stats,
            keep_plan=plans and hooks is None,
        )
        ctx.given_plan = plan
        ctx.save_for_backward(query, key, value, out, lse, *(options[name] for name in MASKS))
        ctx.options = {name: options[name] for name in options if name not in MASKS}
        return out, lse, statistics

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor, _: Any) -> Any:
        saved = ctx.saved_tensors  # once: a checkpoint computes them again each time
        tensors, masks = saved[:5], saved[5:]
        if ctx.given_plan is None and needs_operator(grad_out, grad_lse):
            options = plain(ctx.options)
            values = (options[name] for name in _NAMES if name not in MASKS)
            gradients = torch.ops.smyrf.attention_backward(grad_out, grad_lse, *saved, *values)
            return *gradients, None, None, None
        options = ctx.options | dict(zip(MASKS, masks, strict=True))
        # Autograd frees the saved tensors now, but not ctx, which lives as long as the loss.
        plan, ctx.plan = ctx.plan, ctx.given_plan
        gradients = _SmyrfAttentionBackward.apply(grad_out, grad_lse, *tensors, options, plan)  # type: ignore[no-untyped-call]
        return *gradients, None, None, None


class _SmyrfAttentionBackward(torch.autograd.Function):
    """The first derivative; a second one raises."""

    @staticmethod
    def forward(
        ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor, *inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        *tensors, options, plan = inputs
        return _run_backward(grad_out, grad_lse, tensors, options, plan)

    backward = staticmethod(_second_derivative)


def _no_tangent(ctx: Any, *grad_inputs: Any) -> Any:
    raise NotImplementedError(NO_TANGENT)


class Transformed(torch.autograd.Function):
    """A call of the operator inside transforms of torch.func, with a rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*values: Any) -> Any:
        return torch.ops.smyrf.attention(*values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        count = 3 + len(MASKS)
        ctx.values = inputs[count:]
        ctx.save_for_backward(*inputs[:3], *output, *inputs[3:count])

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        gradients = _TransformedBackward.apply(grad_out, grad_lse, *saved, *ctx.values)  # type: ignore[no-untyped-call]
        return *gradients, *[None] * len(_NAMES)

    jvp = staticmethod(_no_tangent)


class _TransformedBackward(torch.autograd.Function):
    """The first derivative; a second one raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*values: Any) -> Any:
        return torch.ops.smyrf.attention_backward(*values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    backward = staticmethod(_second_derivative)
    jvp = staticmethod(_no_tangent)


def export(name: str, tensor: torch.Tensor | None, *, rows: bool = False) -> Any:
    """A DLPack capsule of a tensor's memory; None for None.

    It takes a quarter of the time of `Tensor.__dlpack__`.

    Args:
        name: of the argument, for messages.
        tensor: strided, on the CPU; float32, float16, bfloat16 or bool.
        rows: the core only reads the tensor, and needs its last dimension contiguous. Where it is
            not, the capsule holds a copy.

    Raises:
        TypeError: a tensor of another kind, or without memory of its own.
    """
    if tensor is None:
        return None
    if not tensor.is_cpu or tensor.layout != torch.strided:
        raise TypeError(
            f"{name}: got a {tensor.layout} tensor on {tensor.device}, expected a strided one on "
            "the CPU; call .cpu() or .to_dense()"
        )
    try:
        if rows and not tensor.is_contiguous() and not _has_rows(tensor):
            tensor = tensor.contiguous()
        if tensor.requires_grad or tensor.is_neg():
            tensor = detached(tensor)
        return to_dlpack(tensor)
    except BufferError:
        remedy = "call .dequantize()" if tensor.is_quantized else "convert it"
        raise TypeError(
            f"{name}: got dtype {str(tensor.dtype).removeprefix('torch.')}, expected float32, "
            f"float16 or bfloat16; {remedy}"
        ) from None
    except RuntimeError:
        raise TypeError(
            f"{name}: has no memory of its own, as inside transforms of torch.func; call "
            "without plan, out and return_stats there, and outside compiled graphs"
        ) from None


def export_rows(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    return (
        export("query", query, rows=True),
        export("key", key, rows=True),
        export("value", value, rows=True),
    )


def _has_rows(tensor: torch.Tensor) -> bool:
    """Whether the last dimension is contiguous."""
    return tensor.ndim == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor with the strides of another, but always with contiguous rows."""
    like = torch.empty_like(tensor)
    if like.is_contiguous() or _has_rows(like):
        return like
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def empty_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """An empty out, with the strides that PyTorch's attention would give it.

    So code that views PyTorch's result works with ours. PyTorch's fused kernel gives out the
    strides of query: where a transposed view split the heads of query, a view can join those of
    out. Otherwise, and always in layout BNHD, out is contiguous.
    """
    mask = options["attn_mask"]
    fused = (
        not query.is_contiguous()
        and query.ndim == 4
        and query.shape[-1] == value.shape[-1]
        and options["layout"] == "BHND"
        and options["dropout_p"] == 0.0
        and (mask is None or mask.ndim != 3)
        and query.shape[2] > 0
        and key.shape[2] > 0
        and _has_rows(query)
        and _has_rows(key)
        and _has_rows(value)
    )
    return _empty_like(query) if fused else query.new_empty(output_shape(query, value))


def exported(options: dict[str, Any]) -> dict[str, Any]:
    """The options as the core takes them."""
    masks = {name: export(name, options[name]) for name in MASKS if options[name] is not None}
    threads = options["num_threads"]
    return {
        **options,
        **masks,
        "num_threads": torch.get_num_threads() if threads is None else threads,
    }


def run(
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    options: dict[str, Any],
    plan: _core.Plan | None,
    return_stats: bool,
    *,
    keep_plan: bool = False,
) -> tuple[_core.Statistics | None, _core.Plan | None]:
    """One call of the core, without autograd. It writes out and, where that is given, lse.

    Returns:
        The statistics, or None where nobody wants them. Then the plan that was carried out: the one
        given, with `keep_plan` the one that was made, else None.
    """
    query, key, value = inputs
    collecting = collector.active()
    arrays = (
        *export_rows(query, key, value),
        export("out", out),
        export("lse", lse),
    )
    first = _environment.is_first(options, plan, query, key)
    with_statistics = return_stats or first or collecting is not None
    kept = plan
    if keep_plan:
        statistics, kept = _core.attention_and_plan(*arrays, with_statistics, exported(options))
    else:
        statistics = _core.attention(*arrays, plan, with_statistics, exported(options))
    if first:
        _environment.say_first(statistics, options)
    if collecting is not None and statistics is not None:
        collecting.add(statistics, query, key, value, out, {**options, "plan": plan})
    return statistics, kept


def _run_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    saved: Sequence[torch.Tensor],
    options: dict[str, Any],
    plan: _core.Plan | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients by query, key and value, computed by the core without autograd.

    `saved` is query, key, value, out and lse of the call.
    """
    query, key, value, out, lse = saved
    gradients = _empty_like(query), _empty_like(key), _empty_like(value)
    _core.attention_backward(
        *export_rows(query, key, value),
        export("out", out, rows=True),
        export("lse", lse),
        export("grad_out", grad_out, rows=True),
        export("grad_lse", grad_lse.contiguous()),
        export("grad_query", gradients[0]),
        export("grad_key", gradients[1]),
        export("grad_value", gradients[2]),
        plan,
        exported(options),
    )
    return gradients


def call_operator(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> Any:
    """(out, lse) of the operator."""
    values = [options[name] for name in _NAMES]
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        return Transformed.apply(query, key, value, *values)  # type: ignore[no-untyped-call]
    return torch.ops.smyrf.attention(query, key, value, *values)
