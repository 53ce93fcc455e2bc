"""What runs show: sheets of samples and losses, one run's or several."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image


def sheet(images: torch.Tensor, columns: int) -> bytes:
    """Images (count, 3, side, side) from -1 to 1, in rows of so many."""
    count, _, side, _ = images.shape
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    grid = np.full((-(-count // columns) * side, columns * side, 3), 255, np.uint8)
    for index, image in enumerate(levels.permute(0, 2, 3, 1).numpy()):
        top, left = side * (index // columns), side * (index % columns)
        grid[top : top + side, left : left + side] = image
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "PNG")
    return file.getvalue()


def losses(discriminator: Sequence[float], generator: Sequence[float], title: str) -> bytes:
    """Each step's losses as points, and their mean over a fiftieth of the run, as PNG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in (("discriminator", discriminator), ("generator", generator)):
        line = draw_means(axes, values, name)
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, values, ".", color=line.get_color(), alpha=0.15, markersize=2)
    axes.set_title(title, loc="left")
    axes.set_ylabel("hinge loss")
    return contents(figure, "png")


def losses_side_by_side(runs: Mapping[str, Sequence[Sequence[float]]], suffix: str) -> bytes:
    """The discriminator's losses and the generator's, a line a run; `suffix` such as .svg."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), (0, 1), strict=True):
        for name, kept in runs.items():
            draw_means(axes, kept[part], name)
        axes.set_title(("discriminator", "generator")[part], loc="left")
        axes.set_ylabel("hinge loss")
    return contents(figure, suffix.lstrip("."))


def draw_means(axes: Axes, values: Sequence[float], label: str) -> Line2D:
    span = max(1, len(values) // 50)
    means = np.convolve(values, np.full(span, 1 / span), "valid")
    (line,) = axes.plot(np.arange(span, len(values) + 1), means, label=label)
    axes.set_xlabel("step")
    axes.grid(True, alpha=0.3)
    axes.legend()
    return line


def contents(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150)
    return file.getvalue()
