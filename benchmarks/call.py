"""What a call costs beside its arithmetic: one query over 16 keys, D 64, float32, one thread.

Rows are heads; columns are microseconds a call, the best and the median of many readings of 1000
calls, in which all peers take turns. The C++ program (benchmarks/call.cc) runs by itself where the
preset `release` has built it.

    python benchmarks/call.py [--markdown]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import timeit
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from printing import Printer, machine
from timing import check, entry
from torch.nn.functional import scaled_dot_product_attention as sdpa

import smyrf

PROGRAM = Path(__file__).parent.parent / "build" / "release" / "benchmarks" / "smyrf_call"
HEADS = (1, 12)
KEYS, DEPTH = 16, 64
CALLS = 1000
# Microseconds that a call may take.
BARS = {"C++": 4.0, "NumPy": 8.0, "PyTorch": 30.0}


def program() -> dict[int, tuple[float, float]]:
    """Best and median of the C++ program, by heads; nothing where it isn't built."""
    if not PROGRAM.exists():
        return {}
    lines = subprocess.run(
        [PROGRAM], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    rows = [line.split() for line in lines]
    return {int(heads): (float(best), float(median)) for heads, best, median in rows}


def readings(peers: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Microseconds a call of each peer; the first round warms up."""
    loops = {name: partial(timeit.Timer(call).timeit, CALLS) for name, call in peers.items()}
    found: dict[str, list[float]] = {name: [] for name in peers}
    for loop in loops.values():
        loop()
    end = perf_counter() + seconds
    while perf_counter() < end:
        for name, loop in loops.items():
            found[name].append(1e6 * loop() / CALLS)
    return found


def peers(heads: int) -> dict[str, Callable[[], Any]]:
    """The same call by every entry."""
    query = torch.randn(1, heads, 1, DEPTH)
    key, value = (torch.randn(1, heads, KEYS, DEPTH) for _ in range(2))
    arrays = [tensor.numpy() for tensor in (query, key, value)]
    out, core = entry(query, key, value, 1)
    core()
    check(out, sdpa(query, key, value))
    return {
        "extension": core,
        "NumPy": partial(smyrf.attention, *arrays, num_threads=1),
        "PyTorch": partial(smyrf.attention, query, key, value),
        "SDPA": partial(sdpa, query, key, value),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="a row; default 10")
    parser.add_argument("--markdown", action="store_true", help="plain markdown tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    printer = Printer(arguments.markdown)
    printer.facts({"machine": machine(), "smyrf": smyrf.__version__, "torch": torch.__version__})
    of_program = program()
    names: list[str] = []
    rows = []
    for heads in HEADS:
        found = {
            name: (min(times), statistics.median(times))
            for name, times in readings(peers(heads), arguments.seconds).items()
        }
        if heads in of_program:
            found = {"C++": of_program[heads], **found}
        names = list(found)
        rows.append([str(heads), *(f"{low:.2f}, {middle:.2f}" for low, middle in found.values())])
        if heads == 1:
            verdicts = [
                f"{name} {bar:g} ({'met' if found[name][0] <= bar else 'not met'})"
                for name, bar in BARS.items()
                if name in found
            ]
    printer.table("Microseconds a call: best, median", ["heads", *names], rows)
    printer.text(f"Bars of one head, best: {', '.join(verdicts)}.")
    if not of_program:
        printer.text(f"C++ is left out: {PROGRAM} is not built (cmake --build --preset release).")


if __name__ == "__main__":
    main()
