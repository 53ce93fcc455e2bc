"""A photograph as attention: non-local means over patches.

One row a pixel of the photograph shrunk to side x side: q = k = the whitened descriptor of the
8 x 8 patch around it, of unit length, or contrast would count for more than likeness; v = the
patch's pixels less the picture's mean, or brightness would hide errors. D = Dv = 64, so that all
peers do the same work a pair. The logits' scale is chosen so that the median row attends to 64
keys, counted by exp(entropy).
Needs Debian's mate-backgrounds (the photograph) and libjpeg-turbo-progs (djpeg).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np

PHOTOGRAPH = Path("/usr/share/backgrounds/mate/nature/Garden.jpg")
INSTALL = "apt-get install --no-install-recommends mate-backgrounds libjpeg-turbo-progs"
PATCH = 8
EFFECTIVE_KEYS = 64.0
# Of the mean variance. Directions that hold next to nothing of the picture are noise of the camera
# and of JPEG; whitening without a ridge would make them as loud as the rest.
RIDGE = 1e-2

Array = np.ndarray


def missing() -> str:
    """What to install, or nothing."""
    return "" if PHOTOGRAPH.exists() and shutil.which("djpeg") else INSTALL


def rows(side: int) -> tuple[Array, Array, float]:
    """q = k and v, both (1, 1, side^2, 64) float32, and the logits' scale."""
    picture = _shrunk(_luminance(), side)
    patches = _patches(picture)
    centred = patches - patches.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    whitened = (centred @ vectors) / np.sqrt(values + RIDGE * values.mean())
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    x, v = (y.astype(np.float32)[None, None] for y in (whitened, patches - picture.mean()))
    return x, v, _scale(x[0, 0])


def _luminance() -> Array:
    command = ["djpeg", "-grayscale", "-pnm", str(PHOTOGRAPH)]
    packed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    magic, width, height, most, _ = packed.split(maxsplit=4)
    assert magic == b"P5"
    assert most == b"255"
    size = (int(height), int(width))
    # The header ends in a single byte of white space; split() would eat pixels that look like it.
    return np.frombuffer(packed[-size[0] * size[1] :], np.uint8).reshape(size) / 255.0


def _shrunk(picture: Array, side: int) -> Array:
    """The middle square as side x side means."""
    block = min(picture.shape) // side
    top, left = ((length - block * side) // 2 for length in picture.shape)
    square = picture[top : top + block * side, left : left + block * side]
    return square.reshape(side, block, side, block).mean(axis=(1, 3))


def _patches(picture: Array) -> Array:
    """(pixels, PATCH^2): the patch around every pixel, mirrored at the edges."""
    before = PATCH // 2
    padded = np.pad(picture, (before, PATCH - 1 - before), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH))
    return windows.reshape(picture.size, PATCH**2)


def _scale(x: Array, sampled: int = 256) -> float:
    """The factor at which the median row's exp(entropy) is EFFECTIVE_KEYS, by bisection."""
    queries = np.random.default_rng(0).choice(len(x), sampled, replace=False)
    logits = x[queries] @ x.T
    low, high = 1e-4, 1e2
    for _ in range(24):
        middle = (low * high) ** 0.5
        if np.median(_effective(middle * logits)) > EFFECTIVE_KEYS:
            low = middle
        else:
            high = middle
    return float(low)


def _effective(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=1)
    return np.exp(np.log(total) - (weights * shifted).sum(axis=1) / total)
