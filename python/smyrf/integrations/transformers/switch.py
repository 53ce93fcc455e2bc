"""`enable` and `disable`: a loaded model takes smyrf's attention, or its own again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from smyrf._dials import Layers, check_dials, choose
from smyrf._types import Method
from smyrf.integrations.transformers.interface import NAME, dispatches
from smyrf.integrations.transformers.layers import (
    Enabled,
    Layer,
    forget,
    keep,
    keep_enabled,
    kept,
    kept_enabled,
    set_implementation,
    switched,
)

# A forward that takes nothing but these can only attend from its states to themselves.
_SELF_ATTENTION_PARAMETERS = frozenset(
    {
        "attention_mask",
        "cache_position",
        "cu_seqlens",
        "hidden_states",
        "layer_idx",
        "max_seqlen",
        "output_attentions",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "use_cache",
    }
)


def enable(
    model: nn.Module,
    method: Method = "auto",
    layers: Layers = None,
    **dials: float | None,
) -> list[str]:
    """Switch a loaded model's attention to smyrf, in place.

    `_attn_implementation` of the model's configs changes. An attribute of the model, and of each
    attention module, keeps method and dials. A copy of the model (`copy.deepcopy`, pickle) is
    therefore enabled too, on configs of its own. Another model built on the same config objects
    runs smyrf's `auto` meanwhile. Enabling again replaces method, layers and dials. A model that is
    deleted while enabled counts as disabled.

    Args:
        model: a transformers model whose layers use its attention interface, or a module that
            holds such models.
        method: as in `smyrf.attention`, default "auto".
        layers: which attention modules take the method; the others run smyrf's `dense`. None (the
            default): all. A string: a shell pattern (`fnmatch`, case counts) for the module's name
            in `model.named_modules()`, such as "encoder.layer.*". A callable: gets the name and the
            module of each attention module, and returns whether it takes the method.
        dials: n_hashes, cluster_size, tolerance, max_density, seed: as in `smyrf.attention`. With
            attention dropout, a layer draws the seed of each call from PyTorch's generator instead,
            so that `lsh` hashes anew in each call.

    Returns:
        Names of the modules that take the method.

    Raises:
        TypeError: model is no module; an unknown dial; layers of another type.
        ValueError: an unknown method; a dial out of range, or of another method; no attention
            module found, or none chosen by layers; modules enabled through another model already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a loaded model")
    check_dials(method, dials)
    found = {name: module for name, module in model.named_modules() if dispatches(type(module))}
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} has no module that calls transformers' attention "
            "interface; smyrf can't be switched on in it"
        )
    chosen = choose(found, layers)
    before = _replaced(model, found)
    for enabled in before:
        forget(model, enabled)
    configs = [switched(config) for config in _configs(model, list(found.values()))]
    for one in configs:
        set_implementation(one.config, NAME)
    enabled = Enabled(configs, model)
    keep_enabled(model, enabled)
    for name, module in found.items():
        taken = name in chosen
        layer = Layer(
            name=name,
            method=method if taken else "dense",
            dials=dials if taken else {},
            self_attention=_is_self_attention(name, module),
            enabled=enabled,
        )
        keep(module, layer)
    return chosen


def disable(model: nn.Module) -> None:
    """Give a model back the attention implementation it had before `enable`.

    All enabled models inside a module are disabled with it. A config that other enabled models
    share changes back when the last of them is disabled; until then the model runs smyrf's `auto`.

    Raises:
        ValueError: the model is not enabled, or it is a part of one that is.
    """
    inside = [kept_enabled(module) for module in model.modules()]
    found = {id(enabled): enabled for enabled in inside if enabled is not None}
    # A copy of a part of an enabled model is enabled, too.
    for name, enabled in _enabled_layers(model).items():
        if id(enabled) not in found:
            _refuse_owner(model, name, enabled)
            found[id(enabled)] = enabled
    if not found:
        config = getattr(model, "config", None)
        if getattr(config, "_attn_implementation", None) == NAME:
            raise ValueError(
                f"model: this {type(model).__name__} was loaded with attn_implementation={NAME!r} "
                "and not enabled; model.set_attn_implementation('sdpa') takes it off"
            )
        raise ValueError(
            f"model: this {type(model).__name__} is not enabled; call "
            "smyrf.transformers.enable(model, ...) on this very object before disable"
        )
    for enabled in found.values():
        forget(model, enabled)


def _replaced(model: nn.Module, attention: Mapping[str, nn.Module]) -> list[Enabled]:
    """Earlier calls of `enable` on this model; raises where one was on another model object."""
    own = kept_enabled(model)
    found = {} if own is None else {id(own): own}
    for name, enabled in _enabled_layers(model).items():
        if enabled is not own:
            _refuse_owner(model, name, enabled)
        found[id(enabled)] = enabled
    return list(found.values())


def _enabled_layers(model: nn.Module) -> dict[str, Enabled]:
    layers = {name: kept(module) for name, module in model.named_modules()}
    return {name: layer.enabled for name, layer in layers.items() if layer is not None}


def _refuse_owner(model: nn.Module, name: str, enabled: Enabled) -> None:
    """Raise where another model object was given to `enable`, and is still there."""
    inside = (m for m in model.modules() if m is not model and kept_enabled(m) is enabled)
    owner = next(inside, enabled.model())
    if owner is not None and owner is not model:
        raise ValueError(
            f"model: {name} is already enabled through another model object, a "
            f"{type(owner).__name__}; call smyrf.transformers.disable on that first"
        )


def _is_self_attention(name: str, module: nn.Module) -> bool:
    """Whether it is certain that a module's queries and keys are the same positions."""
    if name.rpartition(".")[2] == "self_attn":
        return True
    parameters = inspect.signature(type(module).forward).parameters.values()
    names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
    return "hidden_states" in names and names <= _SELF_ATTENTION_PARAMETERS


def _configs(model: nn.Module, attention: list[nn.Module]) -> list[PreTrainedConfig]:
    """The distinct configs that choose the implementation or build the masks of these modules."""
    wanted = {id(module) for module in attention}
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        concerned = id(module) in wanted or (
            isinstance(module, PreTrainedModel) and any(id(m) in wanted for m in module.modules())
        )
        config = getattr(module, "config", None)
        if concerned and isinstance(config, PreTrainedConfig):
            configs[id(config)] = config
    return list(configs.values())
