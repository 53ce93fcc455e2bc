"""Step 1: a noisy photograph, cleaned by non-local means over the whole picture. NumPy only.

Non-local means is attention. Row i of the queries and of the keys is the patch around pixel i; the
logit of a pair is -|a - b|^2 / (2 h^2), so that patches that look alike weigh most; row i of the
values is the patch's pixels. The patches lie over each other, so each pixel is the mean of what all
patches around it say.

Buades, Coll, Morel, "A non-local algorithm for image denoising", CVPR 2005; distances on the first
principal components by Tasdizen, "Principal neighborhood dictionaries", 2009.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import common
import numpy as np
from matplotlib import cbook
from matplotlib.figure import Figure
from PIL import Image

import smyrf

NOISE = 25 / 255  # standard deviation, of pixels in 0 to 1
PATCH = 7  # pixels a side
COMPONENTS = 12
WIDTH = 2.5 * NOISE  # h above
TOLERANCES = (0.1, 0.05)

Array = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--threads", type=int, default=common.threads())
    parser.add_argument("--folder", type=Path, default=common.ROOT / "build" / "demo")
    options = parser.parse_args()
    side = options.side
    common.head(
        1,
        f"A noisy photograph of {side} x {side} pixels, cleaned by non-local means: "
        f"each pixel attends to all {side * side:,}. NumPy only.",
    )
    clean = photograph(side)
    noisy = clean + NOISE * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    q, k, v = rows(noisy)
    common.row("", "seconds", "as quick", "PSNR, dB")
    common.row("noisy", "", "", f"{psnr(noisy, clean):.1f}")
    pictures = {"clean": clean, f"noisy, {psnr(noisy, clean):.1f} dB": noisy}
    methods = {"exact (dense)": {"method": "dense"}} | {
        f"tree, tolerance {t:.0%}": {"method": "tree", "tolerance": t} for t in TOLERANCES
    }
    found = {}
    smyrf.attention(q[:, :, :256], k, v, scale=1.0, method="dense")  # threads and pages
    for name, method in methods.items():
        start = time.perf_counter()
        out = smyrf.attention(q, k, v, scale=1.0, num_threads=options.threads, **method)
        seconds = time.perf_counter() - start
        cleaned = mean_of_patches(out[0, 0], side)
        decibels = psnr(cleaned, clean)
        exact = found[next(iter(found))]["seconds"] if found else seconds
        found[name] = {"seconds": seconds, "psnr": decibels}
        common.row(name, f"{seconds:.2f}", f"{exact / seconds:.0f} x", f"{decibels:.1f}")
        pictures[f"{name}: {seconds:.2f} s, {decibels:.1f} dB"] = cleaned
    file = options.folder / "picture.png"
    common.keep(options.folder, "picture", {"rows": side * side, "methods": found})
    draw(pictures, file)
    common.say(f"See {common.shown(file)}")


def photograph(side: int) -> Array:
    """(side, side) float32 in 0 to 1: matplotlib's portrait of Grace Hopper, which the US Navy
    made and gave to the public domain."""
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        grey = image.convert("L")
        square = min(grey.size)
        left, top = ((length - square) // 2 for length in grey.size)
        part = grey.crop((left, top, left + square, top + square))
        return np.asarray(part.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255


def rows(picture: Array) -> tuple[Array, Array, Array]:
    """q, k (1, 1, pixels, COMPONENTS + 1) and v (1, 1, pixels, PATCH^2), float32, for scale 1.

    -|a - b|^2 = 2 ab - |b|^2 - |a|^2: the last is the same in a row of logits, so softmax does
    without it; |b|^2 is one more coordinate of the key, and the query's there is 1.
    """
    before = PATCH // 2
    padded = np.pad(picture, (before, PATCH - 1 - before), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH))
    patches = windows.reshape(picture.size, PATCH**2)
    centred = patches - patches.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # the largest last
    x = centred @ directions[:, -COMPONENTS:] / WIDTH
    q = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    k = np.concatenate([x, -0.5 * (x**2).sum(axis=1, keepdims=True)], axis=1)
    q, k, v = (np.ascontiguousarray(y, np.float32)[None, None] for y in (q, k, patches))
    return q, k, v


def mean_of_patches(patches: Array, side: int) -> Array:
    """(side, side) from (side^2, PATCH^2): each pixel as the mean of the patches over it."""
    total = np.zeros((side + PATCH - 1,) * 2)
    count = np.zeros_like(total)
    for at, of_all in enumerate(patches.T):
        down, right = divmod(at, PATCH)
        total[down : down + side, right : right + side] += of_all.reshape(side, side)
        count[down : down + side, right : right + side] += 1
    before = PATCH // 2
    return (total / count)[before : before + side, before : before + side]


def psnr(picture: Array, clean: Array) -> float:
    """Decibels, for pixels in 0 to 1."""
    return float(-10 * np.log10(np.mean((picture.clip(0, 1) - clean) ** 2)))


def draw(pictures: dict[str, Array], file: Path) -> None:
    figure = Figure(figsize=(3.2 * len(pictures), 3.6), layout="constrained")
    for axes, (title, picture) in zip(
        figure.subplots(1, len(pictures)), pictures.items(), strict=True
    ):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
