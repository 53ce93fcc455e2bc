"""Time and memory of a training step, by method and by the attention's resolution.

    python examples/gan/table.py --json table.json

Each cell is a process of its own. What is measured is in the JSON file at once: run again, and only
the cells that are missing are measured. Weights are untrained and nearly all logits small: tree has
less work then than in a trained pair. Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from checkpoint import write_whole
from networks import METHODS
from train import Trainer, add_network_options, check

from smyrf.compare.measure import PeakMemory
from smyrf.compare.problem import Problem

SIDES = (64, 128, 256)
ROWS = ("explicit", "sdpa", "dense", "lsh", "tree")
GB = 2**30
# What a cell depends on; cells of one file share it.
SHARED = ("images", "size", "width", "batch", "tolerance", "density", "seed", "threads", "steps")


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """In the child: the shortest of `steps` steps, and their peak of memory above the start.

    At the start there are the networks, their gradients and optimizers, and the images.
    """
    torch.set_num_threads(settings.threads)
    resource.setrlimit(resource.RLIMIT_AS, (int(settings.memory * GB),) * 2)
    trainer = Trainer(settings)
    trainer.step()  # warms up
    times = []
    with PeakMemory() as memory:
        for _ in range(settings.steps):
            start = perf_counter()
            trainer.step()
            times.append(perf_counter() - start)
    return {"seconds": min(times), "peak_bytes": memory.above}


def measure_apart(method: str, side: int, arguments: list[str], memory: float) -> dict[str, Any]:
    """`measure` in a fresh process; what it says of a cell that fails."""
    cell = ["--child", "--method", method, "--attention", str(side)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, *cell], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    if "allocate memory" in done.stderr or "MemoryError" in done.stderr:
        return {"failed": f"more than {memory:g} GB"}
    raise Problem(f"{method} at {side}: {done.stderr.strip() or done.returncode}")


def markdown(cells: dict[str, Any]) -> str:
    lines = ["| attention | " + " | ".join(ROWS) + " |", "|---" * (1 + len(ROWS)) + "|"]
    for side in SIDES:
        row = [cell_text(cells.get(f"{method} {side}")) for method in ROWS]
        lines.append(f"| {side} x {side} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def cell_text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    if "failed" in cell:
        return str(cell["failed"])
    return f"{cell['seconds']:.2f} s, {cell['peak_bytes'] / GB:.2f} GB"


def read(path: Path, shared: dict[str, Any]) -> dict[str, Any]:
    """The cells that are there."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        same = content["settings"] == shared
        cells: dict[str, Any] = content["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"--json {path}: is no table of this program ({error})") from error
    if not same:
        raise Problem(f"--json {path}: was measured with other options; give another name")
    return cells


def fill(settings: argparse.Namespace, arguments: list[str]) -> None:
    shared = {name: getattr(settings, name) for name in SHARED} | {"images": str(settings.images)}
    cells = read(settings.json, shared)
    for side in SIDES:
        for method in ROWS:
            name = f"{method} {side}"
            if name not in cells:
                print(f"measuring {name}", file=sys.stderr)
                cells[name] = measure_apart(method, side, arguments, settings.memory)
                content = json.dumps({"settings": shared, "cells": cells}, indent=2)
                write_whole(settings.json, content.encode() + b"\n")
    print(
        f"A step with {settings.batch} images of {settings.size} x {settings.size} pixels, ", end=""
    )
    print(f"{settings.threads} threads, torch {torch.__version__}:\n\n{markdown(cells)}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_network_options(parser)
    parser.set_defaults(size=256, width=16, batch=1, threads=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=3, help="timed steps a cell")
    parser.add_argument("--memory", type=float, default=16, help="GB that a cell may take")
    parser.add_argument("--json", type=Path, default=Path("table.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, default="dense", help=argparse.SUPPRESS)
    parser.add_argument("--attention", type=int, default=SIDES[0], help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    check(settings)
    if settings.size < SIDES[-1]:
        raise Problem(f"--size {settings.size}: must be at least {SIDES[-1]}")
    return settings


def main(arguments: list[str]) -> None:
    try:
        settings = parse(arguments)
        if settings.child:
            print(json.dumps(measure(settings)))
        else:
            fill(settings, arguments)
    except Problem as problem:
        sys.exit(f"table.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
