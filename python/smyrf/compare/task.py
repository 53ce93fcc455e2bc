"""What a comparison runs and what comes of it, whatever the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smyrf.compare.switch import Switch

Pictures = NDArray[np.uint8]  # (count, height, width, 3)


@dataclass(frozen=True)
class Figure:
    """One number that says what the user gets: `key` for JSON, `title` and `text` for people."""

    key: str
    title: str
    value: float | None
    text: str


def at_least(figure: Figure, bound: float) -> bool:
    """Whether the figure is known and not below the bound; NaN is."""
    return figure.value is not None and figure.value >= bound


def at_most(figure: Figure, bound: float) -> bool:
    """Whether the figure is known and not above the bound; NaN is."""
    return figure.value is not None and figure.value <= bound


class Task(Protocol):
    """A loaded model and its input, ready to run.

    `whole_model` says whether all of the model runs each time, not only its attention; `ran`, what
    it ran on; `weights`, with which weights; `keeps`, what `close` asks of the figures.
    """

    switch: Switch
    ran: str
    weights: str
    keeps: str

    model: Any
    batches: int
    timed: int
    whole_model: bool

    @property
    def about(self) -> str:
        """What runs: the input, how much of it, and what of that is timed."""

    def changeable(self, layer: str) -> bool:
        """Whether a method may take this attention layer; the others stay dense."""

    def narrow(self, layers: Sequence[str]) -> None:
        """Told which layers a method takes; a task that can runs no others."""

    def run(self, batches: int, advance: Callable[[], None]) -> list[Any]:
        """Answers of the first batches, with the attention the model has at the moment."""

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        """The same figures in the same order for every method; dense is judged too."""

    def tell(self, answers: list[Any]) -> str | Pictures | None:
        """The answer as text or pictures, where it is one that people can read or look at."""

    def scope(self, layers: int, every: int) -> str:
        """What the methods were applied to, in a sentence or more: so many layers of all."""

    def verdict(self, figures: Sequence[Figure]) -> str:
        """What the figures mean for the user: the end of "With this method ..."."""

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        """Whether the answers are close enough to dense's that time saved is worth a word."""

    def reference(self) -> str | None:
        """What the answer should have been, None if unknown."""
