"""What `smyrf.transformers.enable` keeps of an attention module."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Layer:
    """What `enable` keeps of an attention module."""

    name: str
    method: str
    dials: Mapping[str, Any]
    self_attention: bool
    owner: weakref.ref[nn.Module]


# By id of the module. A WeakKeyDictionary would do, but torch.compile guards all its keys: any
# other model that comes or goes would void a compiled graph.
_layers: dict[int, Layer] = {}
_ends: dict[int, weakref.finalize[..., nn.Module]] = {}


def keep(module: nn.Module, layer: Layer) -> None:
    """Keep a module's options as long as the module lives, in place of any before."""
    forget(module)
    _layers[id(module)] = layer
    _ends[id(module)] = weakref.finalize(module, _drop, id(module))
    _ends[id(module)].atexit = False


def kept(module: nn.Module) -> Layer | None:
    return _layers.get(id(module))


def forget(module: nn.Module) -> None:
    if id(module) in _layers:
        _ends[id(module)].detach()
        _drop(id(module))


def _drop(key: int) -> None:
    del _layers[key], _ends[key]
