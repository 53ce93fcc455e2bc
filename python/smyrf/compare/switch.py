"""How a kind of model takes another attention, and how that is timed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import smyrf.transformers
from smyrf.compare.measure import AttentionClock, Clock, LayerClock


@dataclass(frozen=True)
class Switch:
    """`own` is the attention a model comes with, as its column is called; `says`, in a sentence.

    `enable` and `disable` are as in `smyrf.transformers`; `clock(model, method)` times attention
    while the model runs with that method.
    """

    own: str
    says: str
    enable: Callable[..., list[str]]
    disable: Callable[[Any], None]
    clock: Callable[[Any, str], AbstractContextManager[Clock]]


def of_transformers(own: str) -> Switch:
    """Of a model that was loaded with the implementation `own`."""
    return Switch(
        own=own,
        says=f"transformers' own {own}",
        enable=smyrf.transformers.enable,
        disable=smyrf.transformers.disable,
        clock=lambda model, method: AttentionClock(
            own if method == own else smyrf.transformers.NAME
        ),
    )


def biggan_switch() -> Switch:
    """A function: what it imports, only generators need."""
    from pytorch_pretrained_biggan.model import SelfAttn

    import smyrf.gan

    return Switch(
        own="explicit",
        says="the generator's own attention",
        enable=smyrf.gan.enable,
        disable=smyrf.gan.disable,
        clock=lambda model, method: LayerClock(
            layer for layer in model.modules() if isinstance(layer, SelfAttn)
        ),
    )
