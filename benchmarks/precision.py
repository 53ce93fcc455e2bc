"""Narrow products on held-out heads of real models: speed over PyTorch's attention, and errors.

Layers are called with all their heads, as a model calls them; every pair is evaluated. Peers take
turns, and the shortest time of each counts. Errors are those of single heads against our `dense`,
as docs/contract.md defines them; "over expected" is the larger of both errors over what statistics
expect. Never a test: the exit code stays 0.

    python benchmarks/precision.py              MiniLM 512, Whisper 1024 and 1500, SmolLM2 1024
    python benchmarks/precision.py --threads 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import heads
import numpy as np
import torch
from errors import measure
from printing import Printer, machine, progress
from timing import best, sdpa

import smyrf

ROWS = (("minilm", 512), ("whisper", 1024), ("whisper", 1500), ("smollm2", 1024))
CALLS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "int16": {"method": "dense", "precision": "int16"},
    "int8": {"method": "dense", "precision": "int8"},
    "auto, 2 %": {"tolerance": 0.02},
    "auto": {},
}
COLUMNS = ("heads ", "N", *CALLS, "auto: heads in int8", "int16", "float32")
ERROR_COLUMNS = (
    *("heads ", "N", "call ", "out: median", "95 %", "worst", "lse: worst"),
    "over expected: worst",
)


def run_layer(layer: heads.Layer, seconds: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Times of the peers; errors of each call, over what was expected, and precisions, by head."""
    arrays = layer.q, layer.k, layer.v
    q, k, v = map(torch.from_numpy, arrays)
    gqa = {"enable_gqa": layer.grouped}
    peers: dict[str, Callable[[], Any]] = {"sdpa": lambda: sdpa(q, k, v, **gqa)}
    for name, options in CALLS.items():
        peers[name] = lambda options=options: smyrf.attention(q, k, v, **gqa, **options)
    times = best(peers, seconds, 3)
    out, lse = smyrf.attention(*arrays, **gqa, method="dense", return_lse=True)
    results = {}
    for name, options in list(CALLS.items())[1:]:
        ours, our_lse, stats = smyrf.attention(
            *arrays, **gqa, **options, return_lse=True, return_stats=True
        )
        found = measure(ours, our_lse, out, lse, layer.v)
        with np.errstate(divide="ignore", invalid="ignore"):
            over = np.maximum(
                found.out / stats.expected_error[0], found.lse / stats.expected_lse_error[0]
            )
        results[name] = (found.out, found.lse, over, stats.precision[0])
    return times, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="at least, a layer")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    printer = Printer(arguments.markdown)
    printer.text(f"{machine()}; {arguments.threads} threads")
    speeds, errors = [], []
    for model, side in progress(ROWS):
        ratios: dict[str, list[float]] = {name: [] for name in CALLS}
        found: dict[str, list[Any]] = {name: [] for name in list(CALLS)[1:]}
        # Of SmolLM2 the first rows of a larger square: "auto" takes `tree` there.
        for whole in heads.layers(model, "held-out", max(side, heads.SIZES[model][-1])):
            rows = (x[:, :, :side].copy() for x in (whole.q, whole.k, whole.v))
            layer = heads.Layer(model, whole.layer, *rows)
            times, results = run_layer(layer, arguments.seconds)
            for name in CALLS:
                ratios[name].append(times["sdpa"] / times[name])
            for name, result in results.items():
                found[name].append(result)
        taken = [p for result in found["auto"] for p in result[3]]
        counts = (str(taken.count(p)) for p in ("int8", "int16", "float32"))
        speeds.append([model, str(side), *(f"{np.median(ratios[n]):.2f}" for n in CALLS), *counts])
        for name, of_call in found.items():
            out, lse, over = (np.concatenate([r[i] for r in of_call]) for i in range(3))
            errors.append(
                [
                    *(model, str(side), name),
                    *(f"{x:.4f}" for x in (*np.quantile(out, (0.5, 0.95, 1.0)), lse.max())),
                    f"{over[np.isfinite(over)].max(initial=0):.2f}",
                ]
            )
    printer.table("Speed over scaled_dot_product_attention, median of layers", COLUMNS, speeds)
    printer.table("Errors of heads", ERROR_COLUMNS, errors)


if __name__ == "__main__":
    main()
