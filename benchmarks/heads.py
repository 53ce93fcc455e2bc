"""Heads of pretrained models as the benchmarks of `tree` use them, and which may be tuned on.

Captured at run time from the weights in the model packages, by the functions of
tools/capture_heads.py, and kept under build/heads so that a second run is quick; remove that folder
where weights or texts have changed. Two splits:

    tuning    constants of `tree` may be chosen by these
    held-out  other layers and other texts: what the published tables show. 93 heads

A layer's queries come with the keys of its group (SmolLM2: 9 heads over 3), as a model passes them.
Of SmolLM2, which is causal, a square holds later queries and earlier keys, so that no mask is left:
q[N:2N] x k[:N].
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smyrf.compare.debian import file_of

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "heads"
SOUNDS = file_of("usr/share/pocketsphinx/test/data")

Array = np.ndarray
Split = Literal["held-out", "tuning"]

# The side of a model's squares; the first is the one that the dial is measured on.
SIZES = {"minilm": (512,), "whisper": (1500, 1024), "smollm2": (4096, 2048)}
FIRST_QUERY = min(SIZES["smollm2"])  # of SmolLM2's queries, those before are in no square

# Layers are counted from 0. The tests' six heads are of tuning layers, on tuning texts.
LAYERS: dict[Split, dict[str, tuple[int, ...]]] = {
    "tuning": {"minilm": (1, 4, 5), "whisper": (0, 2), "smollm2": (2, 7, 12, 18, 24, 28)},
    "held-out": {"minilm": (0, 2, 3), "whisper": (1, 3), "smollm2": (5, 10, 15, 21, 26)},
}
# Text and how many tokens are skipped: The Devil's Dictionary, and the Jargon File behind its
# preface. Both are in the public domain.
TEXTS: dict[Split, dict[str, tuple[str, int]]] = {
    "tuning": {"minilm": ("devil", 5100), "smollm2": ("devil", 0)},
    "held-out": {"minilm": ("jargon", 20000), "smollm2": ("jargon", 20000)},
}
# Whisper hears LibriVox when tuning. Held out are 19 seconds of commands and numbers by other
# speakers: five recordings of a folder, and three without a header (16 kHz, 16 bits).
HELD_OUT_FOLDER = SOUNDS / "cards"
HELD_OUT_RAW = ("goforward.raw", "numbers.raw", "something.raw")


@dataclass(frozen=True, eq=False)  # the same where it is the same object
class Layer:
    """One call's rows, float32: q (1, Hq, N, D), k and v (1, Hkv, N, D), scale 1/sqrt(D)."""

    model: str
    layer: int
    q: Array
    k: Array
    v: Array

    @property
    def grouped(self) -> bool:
        return self.q.shape[1] != self.k.shape[1]

    def head(self, head: int) -> Layer:
        """One query head with its keys."""
        of_keys = head // (self.q.shape[1] // self.k.shape[1])
        q, k, v = self.q[:, head], self.k[:, of_keys], self.v[:, of_keys]
        return Layer(self.model, self.layer, q[:, None], k[:, None], v[:, None])


def layers(model: str, split: Split, side: int | None = None) -> Iterator[Layer]:
    """The layers of a split with squares of a side, by default the first of SIZES."""
    side = SIZES[model][0] if side is None else side
    with np.load(_captured(model, split)) as rows:
        for layer in LAYERS[split][model]:
            q, k, v = (rows[f"{layer}/{what}"] for what in "qkv")
            if model == "smollm2":
                q = q[:, side - FIRST_QUERY :]
            yield Layer(model, layer, *(_copied(x[None, :, :side]) for x in (q, k, v)))


def tiled(layer: Layer, rows: int, noise: float = 0.3, seed: int = 0) -> Layer:
    """The rows of a layer repeated one after another, each with Gaussian noise of its own.

    The noise's deviation is `noise` times that of the coordinate over a head's rows; so no two rows
    are equal, and the groups of rows that attention sees grow with N.
    """
    generator = np.random.default_rng(seed)

    def tile(x: Array) -> Array:
        repeats = -(-rows // x.shape[2])
        grown = np.tile(x, (1, 1, repeats, 1))[:, :, :rows]
        deviation = x.std(axis=2, keepdims=True)
        return grown + noise * deviation * generator.standard_normal(grown.shape, np.float32)

    return Layer(layer.model, layer.layer, tile(layer.q), tile(layer.k), tile(layer.v))


def stored(name: str) -> Layer:
    """One of the tests' heads, from tests/data: needs no weights."""
    with np.load(ROOT / "tests" / "data" / "heads.npz") as rows:
        q, k, v = (rows[f"{name}/{what}"] for what in ("query", "key", "value"))
    model, layer, _ = name.split("-")
    return Layer(model, int(layer), *(_copied(x[None, None]) for x in (q, k, v)))


def _copied(x: Array) -> Array:
    """Rows of their own, float32, contiguous."""
    return np.array(x, np.float32, order="C")


def _captured(model: str, split: Split) -> Path:
    """The file of a model's rows; made if it is not there. Its name tells what is in it."""
    numbers = "-".join(map(str, LAYERS[split][model]))
    text, skip = TEXTS[split].get(model, ("speech", 0))
    path = CACHE / f"{model}-{split}-{text}-{skip}-layers-{numbers}.npz"
    if not path.exists():
        print(f"capturing {model}, {split} heads, into {path.parent}", file=sys.stderr)
        _write(path, _capture(model, split))
    return path


def _write(path: Path, rows: dict[str, Array]) -> None:
    """Written aside and renamed: two runs at once, or one broken off, leave no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".heads.", suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **rows)  # type: ignore[arg-type]
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _capture(model: str, split: Split) -> dict[str, Array]:
    """q, k, v of the layers, (heads, rows, D)."""
    sys.path.append(str(ROOT / "tools"))
    import capture_heads as capture  # loads torch and transformers: only where they are needed

    pattern = {"minilm": capture.BERT, "whisper": capture.WHISPER, "smollm2": capture.LLAMA}[model]
    names = {layer: pattern.format(layer) for layer in LAYERS[split][model]}
    found: dict[str, Any]
    if model == "minilm":
        text, skip = TEXTS[split][model]
        found = capture.minilm(set(names.values()), text, skip)
    elif model == "whisper":
        sound = None if split == "tuning" else _held_out_sound(capture)
        found = capture.whisper(set(names.values()), sound)
    else:
        text, skip = TEXTS[split][model]
        found = capture.smollm2(set(names.values()), text, skip, 2 * max(SIZES[model]))
    kept = {}
    for layer, name in names.items():
        q, k, v = found[name]
        if model == "smollm2":
            keys = max(SIZES[model])
            q, k, v = q[:, FIRST_QUERY:], k[:, :keys], v[:, :keys]
        kept |= {f"{layer}/{what}": _copied(x) for what, x in zip("qkv", (q, k, v), strict=True)}
    return kept


def _held_out_sound(capture: Any) -> Array:
    raw = [np.fromfile(SOUNDS / name, "<i2").astype(np.float32) / 32768 for name in HELD_OUT_RAW]
    return np.concatenate([capture.recordings(str(HELD_OUT_FOLDER)), *raw])
