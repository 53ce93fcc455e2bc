"""What `smyrf.transformers.enable` keeps. It lies on the modules themselves.

So a copy of an enabled model, or a model that another process unpickles, is enabled too: with the
same method and dials, on its own copies of the configs.
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
    """A config that names "smyrf" while models are enabled, and the implementation it named before.

    A config has at most one. `switched` finds it.

    Attributes:
        config: the config.
        original: its implementation before.
        owners: how many `Enabled` hold it.
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
    """The `Switched` of a config; a new one for a config that has none."""
    known = _switched.get(id(config))
    return Switched(config, config._attn_implementation) if known is None else known


class Enabled:
    """One call of `enable`. Its model and each of its layers hold it.

    It ends by `disable`, or when the last of these is deleted. A config that no other `Enabled`
    holds then gets back the implementation that it named before.
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
    """What `enable` chose for an attention module.

    Attributes:
        name: the module's name in the model.
        method, dials: as in `smyrf.attention`.
        self_attention: it is certain that its queries and keys are the same positions.
        enabled: the call of `enable`.
    """

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
    """What `enable` chose for this module; None where it chose nothing."""
    layer: Layer | None = getattr(module, _LAYER, None)  # compiled graphs guard this, and not vars
    return layer


def keep_enabled(model: nn.Module, enabled: Enabled) -> None:
    vars(model)[_ENABLED] = enabled


def kept_enabled(model: nn.Module) -> Enabled | None:
    """What `enable` kept on this very module."""
    enabled: Enabled | None = vars(model).get(_ENABLED)
    return enabled


def forget(model: nn.Module, enabled: Enabled) -> None:
    """End what one `enable` did, and take it off the model and its modules."""
    enabled.end()
    for module in model.modules():
        layer = kept(module)
        if layer is not None and layer.enabled is enabled:
            vars(module).pop(_LAYER, None)  # a wrapper only hands on what its module has
        if kept_enabled(module) is enabled:
            del vars(module)[_ENABLED]
