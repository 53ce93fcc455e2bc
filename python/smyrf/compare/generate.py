"""A generator of images: what it makes of seeded noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from smyrf.compare import inputs
from smyrf.compare.models import Model
from smyrf.compare.problem import Problem
from smyrf.compare.switch import biggan_switch
from smyrf.compare.task import Amount, Figure, Pictures, Quiet, at_most

TIMED_IMAGES = 2


class GenerateImages(Quiet):
    """Images of classes that are evenly spread, each from noise of its own."""

    keeps = "a pixel error of at most 0.1 in the mean and 0.2 in the worst image"

    def __init__(self, model: Model, noise: inputs.Noise, amount: Amount) -> None:
        if amount.length is not None:
            raise Problem(f"--length {amount.length}: a generator's images have the size it makes")
        from pytorch_pretrained_biggan import truncated_noise_sample

        self.switch = biggan_switch()
        self.model, self.weights = model.module, model.weights
        self.truncation = noise.truncation
        config = self.model.config
        count = amount.documents or noise.count
        self.batches = self.observed = count
        self.timed = min(count, TIMED_IMAGES)
        z = truncated_noise_sample(count, config.z_dim, noise.truncation, noise.seed)
        self.z = torch.from_numpy(z).split(1)  # type: ignore[no-untyped-call]
        classes = [i * config.num_classes // count for i in range(count)]
        self.classes = torch.eye(config.num_classes)[classes].split(1)  # type: ignore[no-untyped-call]
        side = config.output_dim
        self.rows = f"{side} x {side} pixels"
        self.about = (
            f"{noise.title}: {count} images of {side} x {side} pixels, classes "
            f"{', '.join(map(str, classes))}; timed on {self.timed} of them"
        )

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        images = []
        for z, label in list(zip(self.z, self.classes, strict=True))[batches.start : batches.stop]:
            with torch.inference_mode():
                images.append(self.model(z, label, self.truncation)[0].numpy())
            advance()
        return images

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        errors = [_relative_rms(a, d) for a, d in zip(answers, dense, strict=True)]
        mean, worst = float(np.mean(errors)), float(np.max(errors))
        return [
            Figure("pixel_error_mean", ("pixels", "mean"), mean, f"{mean:.4f}"),
            Figure("pixel_error_worst", ("pixels", "worst"), worst, f"{worst:.4f}"),
        ]

    def tell(self, answers: list[Any]) -> Pictures:
        levels = np.clip(np.rint((np.stack(answers) + 1) * 127.5), 0, 255)
        pictures: Pictures = levels.astype(np.uint8).transpose(0, 2, 3, 1)
        return pictures

    def verdict(self, figures: Sequence[Figure]) -> str:
        mean, worst = figures
        return (
            f"pixels are off by {mean.text} of their RMS in the mean image (the worst {worst.text})"
        )

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_most(figures[0], 0.1) and at_most(figures[1], 0.2)


def _relative_rms(image: Any, dense: Any) -> float:
    """0 where the images are the same, infinite where dense's alone is all 0."""
    difference = float(np.linalg.norm(image.astype(np.float64) - dense))
    norm = float(np.linalg.norm(dense.astype(np.float64)))
    return difference / norm if norm > 0 else difference and math.inf
