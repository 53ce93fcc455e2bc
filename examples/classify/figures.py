"""What the table's cells say, as markdown: means, standard errors and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MB = 1e6


def cell_name(trained: str, seed: int, inferred: str) -> str:
    return f"{trained}, seed {seed}, by {inferred}"


def step_name(label: str) -> str:
    return f"step, {label}"


@dataclass(frozen=True)
class Difference:
    """Between two ways on the same documents and seeds, of the mean of what is compared.

    `by_documents` is the standard error over documents, each one's difference being the mean over
    seeds: what other documents would change. `by_seeds` is that over seeds, each one's difference
    being the mean over documents: what other seeds would change; NaN where there is one.
    """

    mean: float
    by_documents: float
    by_seeds: float

    @property
    def near(self) -> bool:
        """Within 2 standard errors, those over documents: three seeds' may be 0 by chance."""
        return abs(self.mean) <= 2 * self.by_documents


def difference(got: NDArray[np.float64], base: NDArray[np.float64]) -> Difference:
    """Of two arrays (seeds, documents)."""
    change = got - base
    return Difference(
        float(change.mean()),
        standard_error(change.mean(0)),
        standard_error(change.mean(1)),
    )


def standard_error(values: NDArray[np.float64]) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))


class Figures:
    """The cells of `seeds` seeds, by what was trained with and what answers."""

    def __init__(
        self,
        cells: dict[str, Any],
        trained: Sequence[str],
        inferred: Sequence[str],
        seeds: int,
    ) -> None:
        self.cells, self.trained, self.inferred, self.seeds = cells, trained, inferred, seeds

    def documents(self, trained: str, inferred: str, what: str) -> NDArray[np.float64]:
        """(seeds, documents): percent right (0 or 100) or nats."""
        rows = [self.cells[cell_name(trained, s, inferred)][what] for s in range(self.seeds)]
        return np.asarray(rows, np.float64) * (100 if what == "correct" else 1)

    def mean(self, trained: str, inferred: str, what: str) -> float:
        """Over the seeds, of a number of a cell."""
        rows = [self.cells[cell_name(trained, s, inferred)][what] for s in range(self.seeds)]
        return float(np.mean(rows))

    def means(self, what: str, digits: int) -> str:
        """A row what was trained with, a column what answers."""

        def text(trained: str, inferred: str) -> str:
            by_seed = self.documents(trained, inferred, what).mean(1)
            return f"{by_seed.mean():.{digits}f}{plus_minus(standard_error(by_seed), digits)}"

        return self.grid(self.inferred, text)

    def from_same_weights(self) -> str:
        """Differences from what the same weights say with dense attention."""

        def text(trained: str, inferred: str) -> str:
            base = self.documents(trained, self.inferred[0], "correct")
            return difference_text(difference(self.documents(trained, inferred, "correct"), base))

        return self.grid(self.inferred[1:], text)

    def from_dense(self) -> str:
        """Differences from what was trained and answers with dense attention."""
        base = self.documents(self.trained[0], self.inferred[0], "correct")

        def text(trained: str, inferred: str) -> str:
            if (trained, inferred) == (self.trained[0], self.inferred[0]):
                return "0"
            return difference_text(difference(self.documents(trained, inferred, "correct"), base))

        return self.grid(self.inferred, text)

    def grid(self, columns: Sequence[str], text: Callable[[str, str], str]) -> str:
        rows = [
            [trained, *(text(trained, column) for column in columns)] for trained in self.trained
        ]
        return table(["trained with", *(f"by {column}" for column in columns)], rows)

    def costs(self, steps: Sequence[str], ways: dict[str, tuple[str, str]]) -> str:
        """Of each step, and of the answers by the (trained, inferred) that `ways` names for it."""
        rows = []
        for label in [*steps, *(way for way in ways if way not in steps)]:
            step = self.cells.get(step_name(label))
            row = [label, *(["-"] * 6)]
            density = 1.0
            if label in ways:
                density = self.mean(*ways[label], "density")
                row[2] = f"{self.mean(*ways[label], 'dense_heads'):.0%}"
                row[6] = f"{self.mean(*ways[label], 'seconds'):.3f}"
            row[1] = f"{density:.0%}"
            weights = (step or self.cells[step_name(steps[0])])["weights_bytes"]
            row[3] = f"{density * weights / MB:.1f}"
            if step is not None:
                row[4] = "-" if step["peak_bytes"] is None else f"{step['peak_bytes'] / MB:.0f}"
                row[5] = f"{step['seconds']:.2f}"
            rows.append(row)
        names = (
            "pairs evaluated",
            "heads gone dense",
            "their weights, MB",
            "peak of a step, MB",
            "s a step",
            "s a document answered",
        )
        return table(["attention", *names], rows)


def plus_minus(error: float, digits: int) -> str:
    return "" if math.isnan(error) else f" ± {error:.{digits}f}"


def difference_text(found: Difference) -> str:
    seeds = "" if math.isnan(found.by_seeds) else f" ({found.by_seeds:.2f})"
    mark = "" if found.near else " *"
    return f"{found.mean:+.2f} ± {found.by_documents:.2f}{seeds}{mark}"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
