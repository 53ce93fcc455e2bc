"""PyTorch: the operator `smyrf::attention`, for eager mode, autocast and torch.compile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from smyrf import _core, collector
from smyrf._call import MASKS, PARTS, check_arrays, detached, lse_shape, output_shape, pack

_OPTIONS = (
    "Tensor? attn_mask, Tensor? key_padding_mask, Tensor? query_padding_mask, bool is_causal, "
    "float? scale, bool enable_gqa, str method, SymInt? n_hashes, SymInt? cluster_size, "
    "float? tolerance, float? max_density, SymInt seed, SymInt[]? window, str layout, "
    "SymInt? num_threads, float dropout_p"
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
)

_NO_TANGENT = (
    "smyrf.attention has no forward-mode derivative; use reverse mode (backward), or "
    "torch.nn.functional.scaled_dot_product_attention"
)
_NO_SECOND_DERIVATIVE = (
    "smyrf.attention has no second derivative; leave create_graph out, or use "
    "torch.nn.functional.scaled_dot_product_attention"
)
_NO_MASK_GRADIENT = (
    "attn_mask: requires a gradient, which smyrf.attention doesn't give; detach it, or use "
    "torch.nn.functional.scaled_dot_product_attention"
)


class _Handover(threading.local):
    """How the plan of `tree` gets past the dispatcher, which takes none, to the backward of a call.

    The operator below leaves it for what autograd sets up, and autograd's backward for the
    operator's, on the same thread. Whose it is tells the address of the call's lse. Where somebody
    else runs between, as tracers do, there is none, and backward plans again.
    """

    keeps = False
    plan: _core.Plan | None = None
    address = 0

    def plan_of(self, lse: torch.Tensor) -> _core.Plan | None:
        if self.plan is None or type(lse) is not torch.Tensor:
            return None
        try:
            return self.plan if lse.data_ptr() == self.address else None
        except RuntimeError:  # a tensor of torch.func
            return None


_handover = _Handover()


@contextlib.contextmanager
def _keeping_plan() -> Iterator[None]:
    _handover.keeps = True
    try:
        yield
    finally:
        _handover.keeps, _handover.plan = False, None


@contextlib.contextmanager
def _handing_over(plan: _core.Plan, lse: torch.Tensor) -> Iterator[None]:
    _handover.plan, _handover.address = plan, lse.data_ptr()
    try:
        yield
    finally:
        _handover.plan = None


def _plan_is_worth_keeping(options: dict[str, Any]) -> bool:
    """For backward. Saved tensors have hooks where memory is dear, as in checkpoints."""
    return (
        options["method"] in ("auto", "tree")
        and options["tolerance"] != 0
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
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


# For every device, so that our sentence and not the dispatcher's says that only the CPU will do.
@torch.library.impl("smyrf::attention", "default")
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, values, strict=True))
    out = query.new_empty(output_shape(query, value))
    lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
    _, plan = _run(query, key, value, out, lse, options, None, False, keep_plan=_handover.keeps)
    if plan is not None:
        _handover.plan, _handover.address = plan, lse.data_ptr()
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
    out = query.new_empty(output_shape(query, value))
    return out, query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)


torch.library.register_fake("smyrf::attention", _attention_fake)


@torch.library.impl("smyrf::attention_backward", "default")
def _attention_backward(
    grad_out: torch.Tensor, grad_lse: torch.Tensor, *inputs: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    options = dict(zip(_NAMES, inputs[5:], strict=True))
    return _run_backward(grad_out, grad_lse, inputs[:5], options, _handover.plan_of(inputs[4]))


def _attention_backward_fake(
    grad_out: torch.Tensor, grad_lse: torch.Tensor, *inputs: Any
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs[:3])


torch.library.register_fake("smyrf::attention_backward", _attention_backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, key, value, *values = inputs
    if ctx.needs_input_grad[3]:
        raise NotImplementedError(_NO_MASK_GRADIENT)
    masks, ctx.values = values[: len(MASKS)], values[len(MASKS) :]
    ctx.save_for_backward(query, key, value, *output, *masks)
    ctx.plan = _handover.plan_of(output[1])


def _backward(ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor) -> Any:
    saved = ctx.saved_tensors
    if not torch.compiler.is_compiling():
        # Autograd frees tensors now, and not the node: a loss that lives on would hold the plan.
        plan, ctx.plan = ctx.plan, None
        if plan is not None:
            with _handing_over(plan, saved[4]):
                gradients = torch.ops.smyrf.attention_backward(
                    grad_out, grad_lse, *saved, *ctx.values
                )
            return *gradients, *[None] * len(_NAMES)
    gradients = torch.ops.smyrf.attention_backward(grad_out, grad_lse, *saved, *ctx.values)
    return *gradients, *[None] * len(_NAMES)


def _second_derivative(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise NotImplementedError(_NO_SECOND_DERIVATIVE)


torch.library.register_autograd("smyrf::attention", _backward, setup_context=_setup_context)
torch.library.register_autograd("smyrf::attention_backward", _second_derivative)


class _Direct(torch.autograd.Function):
    """A call that no graph can hold, since it has a plan, keeps one or gives statistics.

    What `tree` planned is kept for the first backward, which would plan it again.
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
        out = query.new_empty(output_shape(query, value))
        lse = query.new_empty(lse_shape(query, options["layout"]), dtype=torch.float32)
        keep = plan is None and _plan_is_worth_keeping(options)
        statistics, ctx.plan = _run(
            query, key, value, out, lse, options, plan, return_stats, keep_plan=keep
        )
        ctx.given_plan = plan
        ctx.save_for_backward(query, key, value, out, lse, *(options[name] for name in MASKS))
        ctx.options = {name: options[name] for name in options if name not in MASKS}
        return out, lse, statistics

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor, _: Any) -> Any:
        saved = ctx.saved_tensors  # once: a checkpoint computes them again each time
        tensors, masks = saved[:5], saved[5:]
        options = ctx.options | dict(zip(MASKS, masks, strict=True))
        # Autograd frees tensors now, and not the node: a loss that lives on would hold the plan.
        plan, ctx.plan = ctx.plan, ctx.given_plan
        gradients = _DirectBackward.apply(grad_out, grad_lse, *tensors, options, plan)  # type: ignore[no-untyped-call]
        return *gradients, None, None, None


class _DirectBackward(torch.autograd.Function):
    """Only so that a second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor, *inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        *tensors, options, plan = inputs
        return _run_backward(grad_out, grad_lse, tensors, options, plan)

    backward = staticmethod(_second_derivative)


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
    exported = options | {name: _export(name, options[name]) for name in MASKS}
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
    *,
    keep_plan: bool = False,
) -> tuple[_core.Statistics | None, _core.Plan | None]:
    """One call of the core; values only, no graph. The plan it carried out, where it is kept."""
    collecting = collector.active()
    arrays = (
        _export("query", query),
        _export("key", key),
        _export("value", value),
        _export("out", out),
        _export("lse", lse),
    )
    with_statistics = return_stats or collecting is not None
    kept = plan
    if keep_plan:
        statistics, kept = _core.attention_and_plan(*arrays, with_statistics, _exported(options))
    else:
        statistics = _core.attention(*arrays, plan, with_statistics, _exported(options))
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
    """The gradients of query, key and value; values only, no graph.

    `saved`: query, key, value, out and lse of the call.
    """
    query, key, value, out, lse = saved
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    _core.attention_backward(
        _export("query", query),
        _export("key", key),
        _export("value", value),
        _export("out", out),
        _export("lse", lse),
        # Gradients of sums are one number, expanded; the core takes rows.
        _export("grad_out", grad_out.contiguous()),
        _export("grad_lse", grad_lse.contiguous()),
        _export("grad_query", gradients[0]),
        _export("grad_key", gradients[1]),
        _export("grad_value", gradients[2]),
        plan,
        _exported(options),
    )
    return gradients


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
    the core directly, outside graphs.
    """
    masks = {name: options[name] for name in MASKS}
    check_arrays(torch.Tensor, key=key, value=value, **masks, out=out)
    _check_differentiation(query, key, value, options["attn_mask"])
    for name in ("is_causal", "enable_gqa"):
        if not isinstance(options[name], bool):  # the schema would take None for False
            raise TypeError(f"{name}: got {options[name]!r}, expected True or False")
    if torch.is_autocast_enabled("cpu"):
        query, key, value = _autocast(query), _autocast(key), _autocast(value)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if (
        needs_gradient
        and plan is None
        and options["method"] == "auto"
        and options["tolerance"] is None
    ):
        options = {**options, "tolerance": 0.0}  # it bounds out's error, and not the gradients'
    if plan is None and out is None and not return_stats:
        try:
            result, lse = _operator(query, key, value, options, needs_gradient)
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
    if out is not None and torch.is_grad_enabled() and (needs_gradient or out.requires_grad):
        raise NotImplementedError(
            "out gives no gradient; leave it out, or call under torch.no_grad()"
        )
    if needs_gradient:
        out, lse, statistics = _Direct.apply(query, key, value, options, plan, return_stats)  # type: ignore[no-untyped-call]
        return pack(out, lse if return_lse else None, statistics if return_stats else None)
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
    statistics, _ = _run(query, key, value, out, lse, options, plan, return_stats)
    return pack(out, lse, statistics if return_stats else None)


def _operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
    needs_gradient: bool,
) -> Any:
    """(out, lse) of the operator, whose plan is kept for backward where it has one."""
    values = [options[name] for name in _NAMES]
    if not needs_gradient or torch.compiler.is_compiling() or not _plan_is_worth_keeping(options):
        return torch.ops.smyrf.attention(query, key, value, *values)
    with _keeping_plan():
        return torch.ops.smyrf.attention(query, key, value, *values)


def _check_differentiation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None
) -> None:
    """Raise for derivatives that there are none of."""
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(_NO_MASK_GRADIENT)
    if torch.compiler.is_compiling():
        return
    for tensor in (query, key, value, attn_mask):
        if tensor is None:
            continue
        if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(_NO_TANGENT)


def planned(
    call: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    options: dict[str, Any],
) -> Any:
    """`smyrf.plan` and `smyrf.estimate` for tensors: `call` is the core's function."""
    given: dict[str, Any] = {"key": key} if value is None else {"key": key, "value": value}
    check_arrays(torch.Tensor, **given, **{name: options[name] for name in MASKS})
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
