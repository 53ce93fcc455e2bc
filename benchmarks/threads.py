"""Threads: how long calls take beside busy processes, and how many parallel sections they have.

Rows are two of the tests' heads of SmolLM2, tiled to N 4096, D 64, one head a call and twelve.
Times are those of the C++ entry; `tree` has a tolerance of 10 %. As many busy processes run as
there are cores, and each of them wants a whole one. OMP_WAIT_POLICY and GOMP_SPINCOUNT come from
the environment. What the figures mean is in docs/threads.md.

    python benchmarks/threads.py [--markdown]
    python benchmarks/threads.py --sections     # counts with gdb, which must be installed
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import heads
import numpy as np
import torch
from printing import Printer, machine, progress
from timing import DEFAULTS, sdpa

from smyrf import _core

N = 4096
HEADS = ("smollm2-7-2", "smollm2-18-8")
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "lsh": {"method": "lsh", "n_hashes": 8, "cluster_size": 128},
    "tree": {"method": "tree", "tolerance": 0.1},
}
WHAT = ("forward", "forward, plan given", "backward", "backward, plan given")
CALLS = {1: 12, 12: 4}  # timed, by heads
HIT = re.compile(r"already hit (\d+) time")


def rows(count: int) -> list[np.ndarray]:
    """q, k and v of so many heads."""
    layers = [heads.tiled(heads.stored(HEADS[i % 2]), N, seed=i) for i in range(count)]
    return [np.concatenate([getattr(layer, x) for layer in layers], axis=1) for x in "qkv"]


def calls(count: int, method: str, threads: int) -> dict[str, Callable[[], object]]:
    """The calls of WHAT, with what backward and a given plan need made before."""
    q, k, v = rows(count)
    options = {**DEFAULTS, **SETTINGS[method], "num_threads": threads}
    out, lse = np.empty_like(q), np.empty(q.shape[:3], np.float32)
    plan = _core.plan(q, k, v, options)
    _core.attention(q, k, v, out, lse, plan, False, options)
    grads = [np.empty_like(x) for x in (q, k, v)]

    def forward(given: _core.Plan | None) -> object:
        return _core.attention(q, k, v, out, lse, given, False, options)

    def backward(given: _core.Plan | None) -> object:
        return _core.attention_backward(q, k, v, out, lse, out, None, *grads, given, options)

    pairs = itertools.product((forward, backward), (None, plan))
    return {
        what: lambda call=call, given=given: call(given)  # type: ignore[misc]
        for what, (call, given) in zip(WHAT, pairs, strict=True)
    }


# The child asks for its parent before and after each call; nothing else does.
GDB = """
set breakpoint pending on
break GOMP_parallel
ignore 1 1000000000
break getppid
commands
silent
info breakpoints 1
continue
end
run
"""


def sections(count: int, method: str, threads: int) -> list[int]:
    """Parallel sections of each call of WHAT: how often it enters OpenMP's function for them."""
    child = [sys.executable, __file__, "--child", str(count), method, str(threads)]
    with tempfile.NamedTemporaryFile("w", suffix=".gdb") as script:
        script.write(GDB)
        script.flush()
        done = subprocess.run(
            ["gdb", "-q", "-batch", "-x", script.name, "--args", *child],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    # A breakpoint that was not hit yet has no such line, so blocks are told by their heading.
    blocks = done.stdout.split("Num ")[1:]
    hits = [int(found[1]) if (found := HIT.search(block)) else 0 for block in blocks]
    if len(hits) != len(WHAT) + 1:
        raise OSError(f"gdb gave {len(hits)} counts, expected {len(WHAT) + 1}:\n{done.stdout}")
    return [after - before for before, after in itertools.pairwise(hits)]


def seconds(count: int, method: str) -> float:
    """The median of a call's times, on PyTorch's default threads."""
    q, k, v = rows(count)
    out = np.empty_like(q)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    options = {**DEFAULTS, **SETTINGS.get(method, {})}

    def call() -> None:
        if method == "SDPA":
            sdpa(*tensors)
        else:
            _core.attention(q, k, v, out, None, None, False, options)

    call()
    times = []
    for _ in range(CALLS[count]):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def beside(busy: int, count: int, method: str) -> float:
    """`seconds`, beside so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        return seconds(count, method)
    finally:
        for other in others:
            other.kill()
            other.wait()


def print_times(printer: Printer) -> None:
    busy = len(os.sched_getaffinity(0))
    cells = list(itertools.product(CALLS, ("SDPA", "dense", "tree")))
    table = []
    for count, method in progress(cells):
        alone, loaded = (beside(others, count, method) * 1000 for others in (0, busy))
        table.append(
            [method, str(count), f"{alone:.0f}", f"{loaded:.0f}", f"{loaded / alone:.1f} x"]
        )
    columns = ["method ", "heads", "alone, ms", f"beside {busy} busy processes, ms", "over alone"]
    printer.table("Time of a call, median", columns, table)


def print_sections(printer: Printer) -> None:
    cells = [(12, 2, m) for m in SETTINGS] + [(1, 2, m) for m in SETTINGS] + [(12, 8, "tree")]
    table = [
        [method, str(count), str(threads)]
        + [str(found) for found in sections(count, method, threads)]
        for count, threads, method in progress(cells)
    ]
    printer.table("Parallel sections of a call", ["method ", "heads", "threads", *WHAT], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", action="store_true", help="count parallel sections by gdb")
    parser.add_argument("--markdown", action="store_true", help="plain markdown tables")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        count, method, threads = arguments.child
        made = calls(int(count), method, int(threads))
        os.getppid()
        for call in made.values():
            call()
            os.getppid()
        return
    printer = Printer(arguments.markdown)
    waiting = {name: os.environ.get(name, "-") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    printer.facts({"machine": machine(), "torch": torch.__version__, **waiting})
    if arguments.sections:
        print_sections(printer)
    else:
        print_times(printer)


if __name__ == "__main__":
    main()
