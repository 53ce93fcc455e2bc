"""Encoders of images, at the size they were trained on or another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from smyrf.compare import inputs
from smyrf.compare.models import Model, read_json
from smyrf.compare.problem import Problem
from smyrf.compare.switch import of_transformers
from smyrf.compare.task import Amount, Figure, Quiet, at_least, cosine

TIMED = 2
LARGEST = 8192  # pixels of a side: 800 MB an image


class EncodeImages(Quiet):
    """The middle square of each image, resized: one embedding of it, and one of every patch."""

    keeps = "a cosine of at least 0.99 in the mean image and 0.95 in the worst"

    def __init__(self, model: Model, images: inputs.Images, amount: Amount) -> None:
        self.model, self.weights = model.module, model.weights
        self.switch, self.pools = of_transformers(model.own), model.pools
        config = model.module.config
        own = getattr(config, "image_size", None)
        own = own if isinstance(own, int) else None
        side = amount.length or own or 224
        patch = getattr(config, "patch_size", 1)
        if isinstance(patch, int) and side % patch:
            raise Problem(
                f"--length {side}: is no multiple of the patch, {patch} pixels; give "
                f"{max(1, side // patch) * patch}"
            )
        if side > LARGEST:
            raise Problem(f"--length {side}: expected at most {LARGEST} pixels")
        self.options: dict[str, Any] = {}
        if (
            side != own
            and "interpolate_pos_encoding" in inspect.signature(model.module.forward).parameters
        ):
            self.options["interpolate_pos_encoding"] = True
        pictures = images.pictures[: amount.documents]
        scale = _scale(model)
        self.pixels = [_pixels(picture, side, *scale) for picture in pictures]
        self.batches = self.observed = len(self.pixels)
        self.timed = min(self.batches, TIMED)
        self.rows = f"{side} x {side} pixels"
        self.about = (
            f"{images.title}: {len(pictures)} image{'s' * (len(pictures) != 1)}, the middle square "
            f"as {self.rows}; timed on {self.timed}"
        )

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        answers = []
        for pixels in self.pixels[batches.start : batches.stop]:
            with torch.inference_mode():
                out = self.model(pixel_values=pixels, **self.options)
            patches = out.last_hidden_state[0]
            pooled = getattr(out, "pooler_output", None)
            whole = patches.flatten(1).mean(0) if pooled is None or not self.pools else pooled[0]
            answers.append((whole.flatten().numpy(), patches.numpy()))
            advance()
        return answers

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        pairs = list(zip(answers, dense, strict=True))
        images = [cosine(a[0], d[0]) for a, d in pairs]
        patches = [cosine(x, y) for a, d in pairs for x, y in zip(a[1], d[1], strict=True)]
        found = float(np.mean(images)), float(np.min(images)), float(np.mean(patches))
        titles = ("mean", "worst", "patches")
        return [
            Figure(f"cosine_{title}", ("cosine", title), value, f"{value:.4f}")
            for title, value in zip(titles, found, strict=True)
        ]

    def verdict(self, figures: Sequence[Figure]) -> str:
        return (
            f"embeddings of images keep a cosine of {figures[0].text} (the worst "
            f"{figures[1].text}), those of patches {figures[2].text}"
        )

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_least(figures[0], 0.99) and at_least(figures[1], 0.95)


def _scale(model: Model) -> tuple[list[float], list[float]]:
    """Mean and deviation of the three colours, as the folder says; 0.5 where it doesn't."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = model.source.folder / name
        if path.is_file():
            given = read_json(path)
            given = given.get("image_processor", given)
            break
    found = []
    for key in ("image_mean", "image_std"):
        values = given.get(key) or [0.5] * 3
        if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
            raise Problem(f"{path}: {key} is {values}, expected three numbers")
        found.append([float(value) for value in values])
    return found[0], found[1]


def _pixels(picture: Any, side: int, mean: list[float], deviation: list[float]) -> torch.Tensor:
    """(1, 3, side, side) float32 of an image of Pillow."""
    from PIL import Image

    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    square = picture.convert("RGB").crop((left, top, left + short, top + short))
    values = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    scaled = (values - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return torch.from_numpy(scaled.transpose(2, 0, 1)[None].copy())
