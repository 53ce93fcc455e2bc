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
class Amount:
    """How much is run, None where the task chooses.

    `length` is what the model gets at once: tokens, pixels of an image's side, or seconds of sound.
    """

    length: int | None = None
    documents: int | None = None


@dataclass(frozen=True)
class Figure:
    """One number that says what the user gets: `key` for JSON, `title` and `text` for people.

    The title heads a column, a line a part.
    """

    key: str
    title: tuple[str, str]
    value: float | None
    text: str


def at_least(figure: Figure, bound: float) -> bool:
    """Whether the figure is known and not below the bound; NaN is."""
    return figure.value is not None and figure.value >= bound


def at_most(figure: Figure, bound: float) -> bool:
    """Whether the figure is known and not above the bound; NaN is."""
    return figure.value is not None and figure.value <= bound


def percent(share: float | None) -> str:
    """With one decimal, unless all digits of it are 0 or 9; "-" where there is no number."""
    if share is None or not np.isfinite(share):
        return "-"
    return f"{100 * share:.1f} %"


def cosine(one: Any, other: Any) -> float:
    """Of two rows, in float64; 1 where both are 0, 0 where one is."""
    one, other = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    if lengths == 0:
        return float(np.array_equal(one, other))
    return float(one @ other) / lengths


class Task(Protocol):
    """A loaded model and its input, ready to run.

    `batches` are the calls of the model that give all answers. In the first `observed` of them
    errors are collected, which costs more than the run itself; the first `timed` are timed.
    `about` says what runs: the input, how much of it, and what of that is timed. `rows` says how
    long the model's inputs are, and `keeps` what `close` asks of the figures.
    """

    model: Any
    switch: Switch
    weights: str
    about: str
    rows: str
    keeps: str
    batches: int
    observed: int
    timed: int

    def changeable(self, layer: str) -> bool:
        """Whether a method may take this attention layer; the others stay dense."""

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        """Answers of these batches, with the attention the model has at the moment."""

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        """The same figures in the same order for every method; dense is judged too."""

    def tell(self, answers: list[Any]) -> str | Pictures | None:
        """The answer as text or pictures, where it is one that people can read or look at."""

    def verdict(self, figures: Sequence[Figure]) -> str:
        """What the figures mean for the user, as the end of a sentence."""

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        """Whether the answers are close enough to dense's that time saved is worth a word."""

    def reference(self) -> str | None:
        """What the answer should have been, None if unknown."""


class Quiet:
    """What most tasks have in common: every layer may change, and answers are for machines."""

    def changeable(self, layer: str) -> bool:
        return True

    def tell(self, answers: list[Any]) -> str | Pictures | None:
        return None

    def reference(self) -> str | None:
        return None
