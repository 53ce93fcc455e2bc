"""What a run shows: a sheet of samples and the losses, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
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
    """Each step's losses as points, and their mean over a fiftieth of the run."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    span = max(1, len(generator) // 50)
    for name, values in (("discriminator", discriminator), ("generator", generator)):
        steps = np.arange(1, len(values) + 1)
        (line,) = axes.plot(steps[span - 1 :], smooth(values, span), label=name)
        axes.plot(steps, values, ".", color=line.get_color(), alpha=0.15, markersize=2)
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("hinge loss")
    axes.grid(True, alpha=0.3)
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def smooth(values: Sequence[float], span: int) -> np.ndarray:
    return np.convolve(values, np.full(span, 1 / span), "valid")
