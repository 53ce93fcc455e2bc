"""The attention function of `smyrf.transformers`: one layer's call."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from smyrf._dials import attend
from smyrf._types import Method
from smyrf.integrations.transformers.exporters import refuse_exporters
from smyrf.integrations.transformers.interface import supports_sdpa, works_out_causality
from smyrf.integrations.transformers.layers import Layer, kept
from smyrf.integrations.transformers.masks import (
    UNBOUNDED,
    Band,
    BoolMask,
    PatternMask,
    as_layers_see,
    is_traced,
)
from smyrf.integrations.transformers.packed import Cuts, attend_texts, is_packed, rows_of

logger = logging.get_logger(__name__)

# Keywords that would change what attention computes, and what to do instead. Transformers' `sdpa`
# takes none of them either: it refuses softcap, and models with one of the others write it into the
# mask or can't be loaded with `sdpa`. Any other keyword is ignored, as `sdpa` ignores it.
_REFUSED = {
    "block_indices": "sparse blocks of keys are not supported; use attn_implementation='sdpa'",
    "cache": "paged caches are not supported; generate without continuous batching",
    "s_aux": "attention sinks are not supported; use attn_implementation='eager'",
    "sinks": "attention sinks are not supported; use attn_implementation='eager'",
    "softcap": "capped logits are not supported; use attn_implementation='eager'",
}

_NO_BIAS_GRADIENT = (
    "{}: got a position_bias or mask that requires a gradient, which smyrf doesn't give; train "
    "with attn_implementation='sdpa', or, where weights alone make the bias, freeze those "
    "(requires_grad_(False))"
)


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | PatternMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered with transformers under the name "smyrf".

    Args:
        module: the calling layer. It takes the method and the dials that `enable` kept for it, or
            "auto" without dials.
        query: (B, Hq, Nq, D).
        key, value: (B, Hkv, Nk, D) and (B, Hkv, Nk, Dv), of query's dtype: float32, float16 or
            bfloat16. Batches and head counts of 1 broadcast (those of learned queries).
        attention_mask: None; a `PatternMask`; or a full mask (B or 1, Hq or 1, Nq or 1, Nk or 1),
            bool (True takes part) or added to the logits. It gets no gradient. A bool mask of shape
            (B or 1, 1, 1, Nk) is padding.
        dropout: the probability with which each weight is dropped, by PyTorch's generator. Layers
            pass 0 unless they train. Default 0; `tree` takes no other.
        scaling: factor on the logits, default 1/sqrt(D).
        is_causal: whether a query sees no later key, where `sdpa` would get no mask; a mask decides
            otherwise. As in `sdpa`, query 0 stands at key 0. Default: `module.is_causal`, or True
            where the layer has none.
        sliding_window: how many keys a query sees, its own included, where there is no mask; a mask
            has the window in it. Default: all.
        position_bias: (B or 1, H or 1, Nq or 1, Nk), added to the logits; default none. `dense` and
            `auto` take it. It gets no gradient.
        kwargs: cu_seq_lens_q and cu_seq_lens_k say that rows hold several texts. Each text then
            attends to itself alone, and by causality its last query stands at its last key.
            indices (B, Nq, count): the keys that an indexer chose for each query. Keywords that
            would change the result raise unless they are None. All others are ignored, as `sdpa`
            ignores them.

    Returns:
        (B, Nq, Hq, Dv) contiguous, and None in the place of the weights.

    Raises:
        NotImplementedError: a keyword or a mask that smyrf, or the layer's method, can't take; an
            export to ONNX or OpenVINO.
        ValueError: sizes of mask or of packed texts that are not those of queries and keys.
    """
    layer = kept(module)
    name = layer.name if layer is not None else _default_name(module)
    _check_keywords(name, kwargs, enabled=layer is not None)
    refuse_exporters(name)
    batch, query, key, value = _batch_of(query, key, value)
    sizes, packed = (batch, query.shape[2], key.shape[2]), is_packed(kwargs)
    mask = as_layers_see(attention_mask)
    causal = _causal(module, is_causal, mask)
    if isinstance(mask, PatternMask) and _leaves_out(mask, causal):
        mask = sliding_window = None
    learned = [x for x in (position_bias, mask) if x is not None and x.is_floating_point()]
    for bias in learned:
        _check_gradient(name, module, bias)
    if mask is not None and mask.requires_grad:
        mask = mask.detach()
    if mask is not None:
        used_keys, options = _options_of_mask(name, layer, mask, sizes)
    else:
        used_keys, options = _options_without_mask(name, causal, sliding_window, packed, query, key)
    _restrict(options, kwargs.get("indices"), sizes, used_keys)
    if position_bias is not None:
        _check_method(name, module, layer)
        _add_bias(options, position_bias.detach()[..., :used_keys])
    key, value = key[:, :, :used_keys], value[:, :, :used_keys]
    options.update(scale=scaling, enable_gqa=bool(query.shape[1] > key.shape[1]), layout="BNHD")
    if layer is not None:
        options.update(layer.dials, method=layer.method)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    call = functools.partial(_call, name, module, dropout)
    texts = mask.texts if isinstance(mask, PatternMask) else None
    rows = rows_of(name, kwargs, texts, (batch, query.shape[1], used_keys))
    if packed and type(attention_mask) is BoolMask:
        _check_texts(name, attention_mask.full(), rows or [])
    attended = query, key, value, options
    out = call(*attended) if rows is None else attend_texts(rows, *attended, call)
    for bias in learned:
        if is_traced() or (bias.requires_grad and torch.is_grad_enabled()):
            out = out + torch.ops.smyrf.no_gradient(bias, name)
    return out, None


def _batch_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch, then query, key and value. Those with a batch of 1 serve the whole batch."""
    three = query, key, value
    if is_traced():  # the example's batch may be 1, and that of later calls another
        sizes: Any = (x.shape[0] for x in three)
        batch: Any = functools.reduce(torch.maximum, sizes)
        return (batch, *(x.expand(batch, -1, -1, -1) for x in three))
    return next((x.shape[0] for x in three if x.shape[0] != 1), 1), *three


def _causal(module: nn.Module, given: bool | None, mask: torch.Tensor | None) -> bool:
    """Whether a layer that computes without a mask is causal."""
    own: bool = getattr(module, "is_causal", True)
    if mask is None and not supports_sdpa(type(module).__module__):
        return False  # in `eager`, no mask means all pairs, whatever the layer says
    if (
        given is False
        and isinstance(mask, PatternMask)
        and works_out_causality(type(module).forward)
    ):
        return own  # the layer got a mask that `sdpa` would not have given it
    return own if given is None else given


def _leaves_out(mask: PatternMask, causal: bool) -> bool:
    """Whether a layer computes without this mask, as `sdpa` does.

    A trace keeps a mask that says the same as the layer: it holds for other sizes, too.
    """
    return mask.none_in_sdpa and not (is_traced() and causal == (mask.band.right == 0))


def _call(
    name: str,
    module: nn.Module,
    dropout: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    if dropout:
        options = options | _dropout_options(name, dropout, options.get("method"))
    try:
        return attend(name, query, key, value, options)
    except NotImplementedError as error:
        raise NotImplementedError(f"{name}: {error}{_advice(name, module, options)}") from error


def _advice(name: str, module: nn.Module, options: Mapping[str, Any]) -> str:
    """How to leave a layer out that can't take its method, so that it runs dense."""
    method = options.get("method", "auto")
    if method in ("auto", "dense"):
        return ""
    rule = f"name != {name!r}"
    if options.get("is_causal") and getattr(module, "is_causal", False):
        rule = "not module.is_causal"
    elif options.get("window") and getattr(module, "sliding_window", None) is not None:
        rule = "getattr(module, 'sliding_window', None) is None"
    return (
        f". To run this layer dense, leave it out: smyrf.transformers.enable(model, "
        f"method={method!r}, layers=lambda name, module: {rule}, ...); where none is left, take "
        "method='auto'"
    )


def _dropout_options(name: str, dropout: float, method: Method | None) -> dict[str, Any]:
    if method == "tree":
        raise NotImplementedError(
            f"{name}: got dropout={dropout}, which method tree can't apply; set the config's "
            "attention dropout to 0 before the model is made, or train with method='dense' or 'lsh'"
        )
    if is_traced():
        raise NotImplementedError(
            f"{name}: got dropout={dropout}, and a trace would drop the same weights in every "
            "call; call model.eval() before torch.jit.trace"
        )
    # The seed comes from the generator that torch.manual_seed seeds and checkpoints restore.
    return {"dropout_p": dropout, "seed": int(torch.randint(2**63 - 1, ()))}


# Gives 0. Its backward raises: somebody asks for the gradient of a bias. It is an operator, so that
# traces hold it.
torch.library.define("smyrf::no_gradient", "(Tensor bias, str layer) -> Tensor")


def _zero(bias: torch.Tensor, layer: str) -> torch.Tensor:
    return bias.new_zeros(())


def _name_layer(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.layer = inputs[1]


def _refuse_gradient(ctx: Any, gradient: torch.Tensor) -> Any:
    raise NotImplementedError(_NO_BIAS_GRADIENT.format(ctx.layer))


torch.library.impl("smyrf::no_gradient", "default", _zero)
torch.library.register_fake("smyrf::no_gradient", _zero)
torch.library.register_autograd("smyrf::no_gradient", _refuse_gradient, setup_context=_name_layer)


def _check_method(name: str, module: nn.Module, layer: Layer | None) -> None:
    if layer is not None and layer.method in ("tree", "lsh"):
        raise NotImplementedError(
            f"{name}: got position_bias, which method {layer.method} can't add to the logits"
            f"{_advice(name, module, {'method': layer.method})}"
        )


def _check_gradient(name: str, module: nn.Module, bias: torch.Tensor) -> None:
    # Outside training PyTorch often keeps graphs that nobody uses: only backward raises there.
    early = module.training or torch.compiler.is_compiling()
    if early and bias.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(_NO_BIAS_GRADIENT.format(name))


def _add_bias(options: dict[str, Any], bias: torch.Tensor) -> None:
    """Make the bias part of the options' mask, as `sdpa` does."""
    mask = options.get("attn_mask")
    if mask is None:
        options["attn_mask"] = bias
    elif mask.dtype == torch.bool:
        options["attn_mask"] = torch.where(mask, bias, torch.finfo(bias.dtype).min)
    else:
        options["attn_mask"] = mask + bias


def _check_keywords(name: str, kwargs: Mapping[str, Any], *, enabled: bool) -> None:
    for keyword, remedy in _REFUSED.items():
        if kwargs.get(keyword) is not None:
            back = "; smyrf.transformers.disable(model) gives back the attention it had"
            raise NotImplementedError(f"{name}: got {keyword}, {remedy}{back if enabled else ''}")
    if kwargs.get("output_attentions"):
        logger.warning_once(
            "smyrf never forms the attention weights: output_attentions=True gives None for them. "
            "Use attn_implementation='eager' to see them."
        )


def _options_of_mask(
    name: str,
    layer: Layer | None,
    mask: torch.Tensor | PatternMask,
    sizes: tuple[int, int, int],
) -> tuple[int, dict[str, Any]]:
    """How many leading keys are used, and the options. Sizes: batch, queries, keys."""
    batch, queries, keys = sizes
    if isinstance(mask, PatternMask):
        if _has_sizes(name, mask, queries, keys):
            return mask.used_keys, _pattern_options(mask, layer, batch)
        mask = mask.full()
    return keys, _full_mask_options(name, mask, sizes)


def _options_without_mask(
    name: str,
    causal: bool,
    window: int | None,
    packed: bool,
    query: torch.Tensor,
    key: torch.Tensor,
) -> tuple[int, dict[str, Any]]:
    """How many leading keys are used, and the options.

    They mean what they mean in `sdpa`, or for packed rows in flash attention.
    """
    queries, keys = query.shape[2], key.shape[2]
    if packed:
        options: dict[str, Any] = {"is_causal": True} if causal else {}
        if window is not None:
            options["window"] = (window - 1, UNBOUNDED if causal else window - 1)
        return keys, options
    if window is not None and keys > window:
        raise NotImplementedError(
            f"{name}: got sliding_window={window} and no mask for {keys} keys; smyrf takes the "
            "window from the mask: pass attention_mask, or use attn_implementation='sdpa'"
        )
    if not causal or queries == 1:
        return keys, {}
    if keys >= queries:  # more keys are a static cache's unused rows
        return queries, {"is_causal": True}
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    return keys, {"attn_mask": allowed[None, None]}


def _has_sizes(name: str, mask: PatternMask, queries: int, keys: int) -> bool:
    """Whether a mask has these sizes. It may have a size of 1 instead, for all queries or keys."""
    of_mask = tuple(mask.shape[2:])
    if of_mask[0] not in (1, queries) or of_mask[1] not in (1, keys):
        raise ValueError(
            f"{name}: got {queries} queries and {keys} keys, the model's mask is for "
            f"{of_mask[0]} and {of_mask[1]}; use attn_implementation='sdpa' for this model"
        )
    return of_mask == (queries, keys)


def _check_texts(name: str, mask: torch.Tensor, rows: Sequence[Cuts]) -> None:
    """Raise where transformers' mask is a pattern of the whole row, and not of these texts."""
    for row, cuts in zip(mask.expand(len(rows), -1, -1, -1), rows, strict=True):
        for query, key in cuts[1:-1]:
            if key > 0 and bool(row[:, query : query + 1, key - 1].any()):
                raise ValueError(
                    f"{name}: got cu_seq_lens_q and a mask of the whole row, as of layers that "
                    "attend in chunks; call the model with use_cache=False and position_ids that "
                    "begin anew in each text, so that its mask is made of texts"
                )


def _pattern_options(mask: PatternMask, layer: Layer | None, batch: int) -> dict[str, Any]:
    left, right = mask.band
    padding = None if mask.padding is None else mask.padding.expand(batch, -1)
    options: dict[str, Any] = {"key_padding_mask": padding}
    if right == 0:
        options["is_causal"] = True
        right = UNBOUNDED
    if (left, right) != (UNBOUNDED, UNBOUNDED):
        options["window"] = (left, right)
    # Nobody reads the outputs of padded queries. `dense` gives them what `sdpa` gives. In other
    # methods they would take part in the order of queries, so those are told which are padded,
    # where queries and keys are certainly the same positions.
    plain_self = layer is not None and layer.self_attention and layer.method != "dense"
    if plain_self and mask.shape[2] == mask.used_keys and mask.band == Band(UNBOUNDED, UNBOUNDED):
        options["query_padding_mask"] = padding
    return options


def _restrict(
    options: dict[str, Any], indices: Any, sizes: tuple[int, int, int], used_keys: int
) -> None:
    """Allow the keys (batch, queries, count) that DeepSeek's indexer chose, and no other.

    Where the implementation is called "sdpa", models write them into the mask themselves. A keyword
    `indices` of another shape means something else, and is ignored.
    """
    if not isinstance(indices, torch.Tensor) or indices.shape[:-1] != sizes[:2]:
        return
    allowed = torch.zeros(sizes, dtype=torch.bool, device=indices.device)
    allowed = allowed.scatter(-1, indices.long(), True)[:, None, :, :used_keys]
    mask = options.get("attn_mask")
    if mask is None:
        options["attn_mask"] = allowed
    elif mask.dtype == torch.bool:
        options["attn_mask"] = mask & allowed
    else:
        options["attn_mask"] = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _full_mask_options(
    name: str, mask: torch.Tensor, sizes: tuple[int, int, int]
) -> dict[str, Any]:
    if mask.ndim != 4:
        raise NotImplementedError(
            f"{name}: got an attention mask of shape {tuple(mask.shape)}, a layer takes None or "
            "(batch, heads or 1, queries, keys); give a 2-D mask to the model, not to the layer"
        )
    batch, queries, keys = sizes
    # A trace of one query can't tell its mask from padding.
    known = queries > 1 or not is_traced()
    if known and mask.dtype == torch.bool and mask.shape[1:3] == (1, 1):
        return {"key_padding_mask": mask[:, 0, 0].expand(batch, keys)}
    return {"attn_mask": mask}


def _default_name(module: nn.Module) -> str:
    index = getattr(module, "layer_idx", None)
    kind = type(module).__name__
    return kind if index is None else f"{kind}.{index}"
