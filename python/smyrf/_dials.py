"""What every `enable` shares: checks of method and dials, choice of layers, calls of layers."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import smyrf
from smyrf import _core, collector
from smyrf._types import Method

DIALS = (
    *(
        dial["name"]
        for method in _core.methods()
        if not method["chooses"]
        for dial in method["dials"]
    ),
    "precision",
    "seed",
)

Layers = str | Callable[[str, nn.Module], bool] | None


def check_dials(method: Method, dials: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless `smyrf.attention` takes this method with these dials."""
    unknown = [dial for dial in dials if dial not in DIALS]
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: unknown dial, expected {', '.join(DIALS)} (or method, layers)"
        )
    # The core knows the rules of methods and dials. A call with two short rows asks it.
    rows = np.eye(2, dtype=np.float32)[None, None]
    with collector.suspended():
        smyrf.attention(rows, rows, rows, method=method, **dials)


def choose(found: Mapping[str, nn.Module], layers: Layers) -> list[str]:
    """The names of the attention modules that take the method."""
    if layers is None:
        return list(found)
    if isinstance(layers, str):
        chosen = [name for name in found if fnmatch.fnmatchcase(name, layers)]
    elif callable(layers):
        chosen = [name for name, module in found.items() if layers(name, module)]
    else:
        raise TypeError(
            f"layers: got {type(layers).__name__}, expected None, a pattern such as "
            "'encoder.layer.*' or a callable(name, module) -> bool"
        )
    if not chosen:
        given = (
            f"{layers!r}, a pattern for whole names such as '*.0.*', chooses"
            if isinstance(layers, str)
            else "the callable chooses"
        )
        raise ValueError(
            f"layers: {given} none of the model's attention modules: {', '.join(found)}; where "
            "none can take the method, take method='auto' or 'dense'"
        )
    return chosen


def attend(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """`smyrf.attention`. Where records are collected, the call is that of the layer `name`."""
    # A compiler can't follow a ContextVar; records of a compiled graph have no layer name.
    if torch.compiler.is_compiling() or collector.active() is None:
        out: torch.Tensor = smyrf.attention(query, key, value, **options)
        return out
    with collector.calling(name):
        out = smyrf.attention(query, key, value, **options)
    return out
