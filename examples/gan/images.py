"""Random crops of the images of a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smyrf.compare.problem import Problem

DEFAULT = Path("/usr/share/backgrounds/mate/nature")
INSTALL = "apt-get install --no-install-recommends mate-backgrounds"
SUFFIXES = (".jpg", ".jpeg", ".png")
# An image is shrunk until its shorter side is so many crops: whole things are seen, not grain.
CROPS_A_SIDE = 2


class Crops:
    """Square crops in -1 to 1, mirrored every other time, from each image once before any again.

    All images are kept in memory, shrunk. `state_dict` holds where the order is and what random
    numbers come next, so that a run that is resumed sees what it would have seen.
    """

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        self.size = size
        paths = find_images(folder)
        self.images = [read_image(path, size) for path in paths]
        self.fingerprint = fingerprint(self.images)
        self.random = torch.Generator().manual_seed(seed)
        self.order: list[int] = []

    def batch(self, count: int) -> torch.Tensor:
        """(count, 3, size, size)."""
        return torch.stack([self._crop(self._next()) for _ in range(count)])

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])
        self.random.set_state(state["random"])

    def _next(self) -> np.ndarray:
        if not self.order:
            self.order = torch.randperm(len(self.images), generator=self.random).tolist()
        return self.images[self.order.pop()]

    def _crop(self, image: np.ndarray) -> torch.Tensor:
        top, left = (self._below(length - self.size + 1) for length in image.shape[:2])
        crop = image[top : top + self.size, left : left + self.size]
        if self._below(2):
            crop = crop[:, ::-1]
        return torch.from_numpy(crop.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.random))


def fingerprint(images: list[np.ndarray]) -> str:
    """The same for the same images only."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.shape}".encode() + image.tobytes())
    return digest.hexdigest()


def find_images(folder: Path) -> list[Path]:
    """All of them below the folder, sorted; what several links lead to, once."""
    if not folder.is_dir():
        install = f"; type: {INSTALL}" if folder == DEFAULT else ""
        raise Problem(f"images {folder}: is no folder or is not there{install}")

    def refuse(error: OSError) -> None:
        raise Problem(f"images {error.filename}: can't be read ({error.strerror})") from error

    found = [
        Path(base, name)
        for base, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    try:
        paths = sorted({path.resolve() for path in found if path.is_file()})
    except OSError as error:
        refuse(error)
    if not paths:
        raise Problem(f"images {folder}: has no image, expected {', '.join(SUFFIXES)}")
    return paths


def read_image(path: Path, size: int) -> np.ndarray:
    """(height, width, 3) uint8, shrunk; at least size x size."""
    try:
        with Image.open(path) as file:
            mode = file.mode
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Problem(f"image {path}: is damaged or no image ({error}); remove it") from error
    if mode.startswith(("I", "F")):
        raise Problem(f"image {path}: has more than 8 bits a channel; save it with 8")
    if min(image.size) < size:
        width, height = image.size
        raise Problem(
            f"image {path}: has {width} x {height} pixels, crops have {size} x {size}; "
            "remove it or give a smaller --size"
        )
    factor = CROPS_A_SIDE * size / min(image.size)
    if factor < 1:
        width, height = (max(size, round(factor * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image)
