"""Peak memory of one call on 65536 queries and keys, beyond what its inputs and output take.

Each figure comes from a process of its own, without PyTorch. It makes the arrays, writes every page
of out, resets the kernel's high-water mark (/proc/self/clear_refs) and calls once: the start of the
threads, code that is touched for the first time and lse all count. Some kernels count by CPU and
add up late, so a figure is good to a quarter of a megabyte. Linux only.

`dense` and `lsh` get random rows. 12 heads of `dense` see a window of 1024 keys, which changes
their time and not what is held. `tree` gets a head of the tests' data tiled to that length, since
it would take random rows for a case for `dense`.

    python benchmarks/memory.py [--markdown]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import heads
import numpy as np
from printing import Printer, machine

import smyrf
from smyrf.compare.choice import lsh_dials

N, D = 65536, 64
SMALL_N = 1024
MB = 2**20
LSH_MB = 128.0
TREE_MB = 256.0  # the goal is half of it
TREE_HEAD = "smollm2-7-2"
LSE_MB = 4 * N / MB  # of a head
GRAIN_MB = 0.25

# With "heads" for their number, 1 by default. Both settings of lsh evaluate a quarter of the pairs.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"method": "dense", "return_lse": True},
    {"method": "dense", "return_lse": True, "heads": 12, "window": [1023, 0]},
    {"method": "lsh", "n_hashes": 8, "cluster_size": N // 32},
    {"method": "lsh", **lsh_dials(0.25, N)},
    {"method": "tree", "tolerance": 0.1},
    {"method": "tree", "tolerance": 0.05},
)


def status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def measure(n: int, arguments: dict[str, Any]) -> dict[str, float]:
    """In the child: megabytes above the start at the peak of one call, its seconds and density."""
    of_call = arguments.pop("heads", 1)
    if arguments.get("method") == "tree":
        tiled = heads.tiled(heads.stored(TREE_HEAD), n)
        query, key, value = tiled.q, tiled.k, tiled.v
    else:
        generator = np.random.default_rng(0)
        query, key, value = (
            generator.standard_normal((1, of_call, n, D), np.float32) for _ in range(3)
        )
    out = np.full_like(query, 0)
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    start = status("VmRSS")
    result = smyrf.attention(query, key, value, out=out, return_stats=True, **arguments)
    peak = status("VmHWM")
    return {
        "peak": (peak - start) / MB,
        "seconds": result[-1].planning_seconds + result[-1].execution_seconds,
        "density": float(result[-1].density[0, 0]),
    }


def measure_apart(n: int, arguments: dict[str, Any]) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps([n, arguments])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def row(arguments: dict[str, Any], threads: int) -> list[str]:
    """One line of the table."""
    arguments = {**arguments, "num_threads": threads}
    found = measure_apart(N, arguments)
    peak = found["peak"]
    if arguments.get("method") == "tree":
        what, dials = (
            f"tree, density {found['density']:.3f}",
            f"tolerance {arguments['tolerance']:g}",
        )
        bar = TREE_MB
    elif arguments.get("method") == "lsh":
        what = f"lsh, density {found['density']:.2f}"
        dials = f"{arguments['n_hashes']} x {arguments['cluster_size']}"
        bar = LSH_MB
    else:
        count = arguments.get("heads", 1)
        what, dials = "dense, with lse" + (f", {count} heads" if count > 1 else ""), "-"
        lse = count * LSE_MB * (1 - SMALL_N / N)
        bar = measure_apart(SMALL_N, arguments)["peak"] + lse + GRAIN_MB
    verdict = "met" if peak <= bar else "not met"
    return [
        what,
        dials,
        str(threads),
        f"{peak:.2f}",
        f"{bar:.2f}",
        verdict,
        f"{found['seconds']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="plain markdown tables")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(*json.loads(arguments.child))))
        return
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("memory.py: needs Linux: the peak is read from /proc, which this system lacks")

    printer = Printer(arguments.markdown)
    printer.facts({"machine": machine(), "smyrf": smyrf.__version__, "type": "float32"})
    printer.table(
        f"Extra memory at the peak: one head where no number is given, N {N}, D {D}",
        ["method ", "rounds x keys, or dial ", "threads", "MB", "bar, MB", "bar is ", "seconds"],
        [row(given, threads) for given in SETTINGS for threads in (1, 2)],
    )
    printer.text(
        f"Bars: lsh {LSH_MB:.0f} MB; tree {TREE_MB:.0f} MB, goal {TREE_MB / 2:.0f}. dense O(tile) "
        f"a thread and lse: no more than the same call at N {SMALL_N} takes, the rest of lse "
        f"({LSE_MB:.2f} a head) and the counters' grain ({GRAIN_MB:.2f})."
    )


if __name__ == "__main__":
    main()
