"""A comparison as a picture: error and density by layer and head, and error over time.

Imports little at the top: whether a picture can be drawn is known before the long work begins.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from smyrf.compare.problem import Problem

if TYPE_CHECKING:
    from smyrf.compare.comparison import Comparison, Row

FORMATS = (".png", ".svg", ".pdf")
LEAST_ERROR = 0.01  # below it all errors have one colour, the same in every picture


def check_plot(path: Path) -> None:
    """Raises Problem if there is no such format, or nothing to draw with."""
    if path.suffix.lower() not in FORMATS:
        raise Problem(f"--plot {path}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise Problem(
            f"{error.name} is not installed, and --plot needs it; type: pip install matplotlib"
        ) from error


def draw(comparison: Comparison, file: BinaryIO, suffix: str) -> None:
    """Writes the picture: a column a method with its heads' errors above their densities, and a
    last column with the error of every method over its attention time."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from smyrf.compare.report import short_layer

    rows = comparison.rows[2:]
    heads = [heads for row in rows for heads in row.heads.values()]
    worst = max(error for of in heads for error in (1.0, *of.error) if math.isfinite(error))
    most = max(density for of in heads for density in (1.0, *of.density) if math.isfinite(density))
    figure = Figure(
        figsize=(2 + 2.4 * len(rows) + 4.5, max(5.5, 2 + 0.24 * len(comparison.layers))),
        layout="constrained",
    )
    threads = f"{comparison.threads} thread{'s' * (comparison.threads != 1)}"
    figure.suptitle(f"{comparison.model}, {threads}", x=0.01, ha="left")
    maps, front = figure.subfigures(1, 2, squeeze=False, width_ratios=(1 + 2.4 * len(rows), 4.5))[0]
    grid = maps.subplots(2, len(rows), sharex=True, sharey=True, squeeze=False)
    scales: list[dict[str, Any]] = [
        {"norm": LogNorm(LEAST_ERROR, worst), "cmap": "magma_r"},
        {"vmin": 0, "vmax": most, "cmap": "viridis"},
    ]
    for line, (what, scale) in enumerate(zip(("relative error", "density"), scales, strict=True)):
        for column, row in enumerate(rows):
            axes = grid[line][column]
            image = axes.imshow(_matrix(row, what, comparison.layers), aspect="auto", **scale)
            if line == 0:
                axes.set_title(row.label)
            else:
                axes.set_xlabel("head")
        names = [short_layer(layer) for layer in comparison.layers]
        step = max(1, len(names) // 10)
        grid[line][0].set_yticks(range(0, len(names), step), names[::step])
        # Errors reach below the scale's end, where a head was done as dense.
        extend = "min" if line == 0 else "neither"
        maps.colorbar(image, ax=list(grid[line]), label=what, extend=extend)
    _pareto(front.subplots(), comparison)
    figure.savefig(file, format=suffix.lower().lstrip("."), dpi=150)


def _matrix(row: Row, what: str, layers: list[str]) -> Any:
    """(layers, heads); NaN, which is drawn as nothing, where a layer has fewer heads or none."""
    values = [
        []
        if (h := row.heads.get(layer)) is None
        else h.error
        if what == "relative error"
        else h.density
        for layer in layers
    ]
    matrix = np.full((len(values), max(map(len, values))), np.nan)
    for index, heads in enumerate(values):
        matrix[index, : len(heads)] = heads
    # A head that was done as dense may err by 0, which has no logarithm.
    return np.maximum(matrix, LEAST_ERROR / 10) if what == "relative error" else matrix


def _pareto(axes: Any, comparison: Comparison) -> None:
    """Error over time: left and below is better. The exact methods are lines, without an error."""
    from smyrf.compare.report import is_timeable

    if not is_timeable(comparison.dense):
        axes.text(0.5, 0.5, "too short to time", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    base = comparison.dense.attention_seconds
    if base is None:
        return
    for row, style in zip(comparison.rows[:2], (":", "--"), strict=True):
        if row.attention_seconds is None:
            continue  # an `eager` of transformers, which can't be timed
        ratio = row.attention_seconds / base
        axes.axvline(ratio, color="0.4", linestyle=style, label=f"{row.label}, exact")
    for row in comparison.rows[2:]:
        if row.errors is None or row.attention_seconds is None:
            continue  # nothing to show: its output is not finite
        ratio = row.attention_seconds / base
        marker = "o" if row.method == "tree" else "s"
        (point,) = axes.plot(ratio, row.errors.median, marker, label=row.label)
        axes.plot([ratio] * 2, [row.errors.median, row.errors.worst], "-_", color=point.get_color())
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.set_xlabel("attention time, dense = 1")
    axes.set_ylabel("relative error: median, and up to the worst head")
    axes.grid(True, alpha=0.3)
    axes.legend()
