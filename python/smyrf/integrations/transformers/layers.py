"""What `smyrf.transformers.enable` keeps, on the modules themselves.

A copy of an enabled model, or one that another process unpickles, brings this along: it is enabled
with the same method and dials, on its own copies of the configs.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from smyrf._types import Method


class Switched:
    """A config that models are enabled on, and the implementation that it named before.

    Each config has one: `switched` finds that of a config that is switched already.
    """

    def __init__(self, config: PreTrainedConfig, original: str | None) -> None:
        self.config = config
        self.original = original
        self.owners = 0
        _switched[id(config)] = self

    def __reduce__(self) -> Any:
        return Switched, (self.config, self.original)


_switched: weakref.WeakValueDictionary[int, Switched] = weakref.WeakValueDictionary()


def switched(config: PreTrainedConfig) -> Switched:
    known = _switched.get(id(config))
    return Switched(config, config._attn_implementation) if known is None else known


class Enabled:
    """One `enable`, held by its model and by each of its layers.

    When it ends, by `disable` or with the last of them, configs that have no other owner get back
    what they said before.
    """

    def __init__(self, configs: Sequence[Switched], model: nn.Module | None = None) -> None:
        self.configs = configs
        self.model = (lambda: None) if model is None else weakref.ref(model)
        for one in configs:
            one.owners += 1
        self.end = weakref.finalize(self, _give_back, configs)
        self.end.atexit = False

    def __reduce__(self) -> Any:
        return _copied, (self.configs if self.end.alive else (),)


def _copied(configs: Sequence[Switched]) -> Enabled:
    return Enabled(configs)


def _give_back(configs: Sequence[Switched]) -> None:
    for one in configs:
        one.owners -= 1
        if one.owners == 0:
            set_implementation(one.config, one.original)
            _switched.pop(id(one.config), None)


def set_implementation(config: PreTrainedConfig, implementation: str | None) -> None:
    # A dict with the key "" sets this config alone; a string would go down into its sub-configs.
    config._attn_implementation = {"": implementation}


@dataclass(frozen=True)
class Layer:
    """What `enable` chose for an attention module."""

    name: str
    method: Method
    dials: Mapping[str, Any]
    self_attention: bool
    enabled: Enabled


# Attributes of an attention module, and of the model that was given to `enable`.
_LAYER, _ENABLED = "_smyrf_layer", "_smyrf_enabled"


def keep(module: nn.Module, layer: Layer) -> None:
    vars(module)[_LAYER] = layer


def kept(module: nn.Module) -> Layer | None:
    layer: Layer | None = getattr(module, _LAYER, None)  # compiled graphs guard this, and not vars
    return layer


def keep_enabled(model: nn.Module, enabled: Enabled) -> None:
    vars(model)[_ENABLED] = enabled


def kept_enabled(model: nn.Module) -> Enabled | None:
    """What `enable` kept on this very module."""
    enabled: Enabled | None = vars(model).get(_ENABLED)
    return enabled


def forget(model: nn.Module, enabled: Enabled) -> None:
    """End it, and take it off the model and its modules."""
    enabled.end()
    for module in model.modules():
        layer = kept(module)
        if layer is not None and layer.enabled is enabled:
            vars(module).pop(_LAYER, None)  # a wrapper only hands on what its module has
        if kept_enabled(module) is enabled:
            del vars(module)[_ENABLED]
