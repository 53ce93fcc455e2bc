"""Forward and backward beside SDPA's: `dense` on random rows, `tree` on real heads.

Ratios are of speed; above 1, ours is faster. Times are of the calls as models make them, autograd
and Python included; a step is forward and backward. The gradients of `tree` are exact for what it
computes; how far they are from dense attention's is shown for two losses: a random linear one,
whose gradient by out is noise, and half the square of out. Never a test: the exit code stays 0.

    python benchmarks/training.py            every table, 1 and 2 threads
    python benchmarks/training.py --quick    N up to 1024; one layer, no tiled heads
    python benchmarks/training.py --only tree
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import heads
import numpy as np
import torch
from memory import MB, status
from printing import Printer, machine, progress
from timing import best, check
from torch.nn.functional import scaled_dot_product_attention as sdpa

import smyrf

HEADS, D = 8, 64
SIDES = (512, 1024, 4096)
TREE: dict[str, Any] = {"method": "tree", "tolerance": 0.1}
DENSE: dict[str, Any] = {"method": "dense"}
TILED = 16384
LOSSES = ("random", "out^2 / 2")

Tensors = tuple[torch.Tensor, ...]
Attention = Callable[..., torch.Tensor]


def random_rows(n: int) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(1, HEADS, n, D, generator=generator).requires_grad_() for _ in range(3)
    )


def rows_of(layer: heads.Layer) -> Tensors:
    return tuple(torch.from_numpy(x).requires_grad_() for x in (layer.q, layer.k, layer.v))


def peers_of(rows: Tensors, methods: Sequence[dict[str, Any]]) -> dict[str, Attention]:
    """SDPA, then ours by method."""
    gqa = {"enable_gqa": rows[0].shape[1] != rows[1].shape[1]}
    found: dict[str, Attention] = {"SDPA": partial(sdpa, **gqa)}
    for options in methods:
        found[options["method"]] = partial(smyrf.attention, **options, **gqa)
    return found


def gradient_of_out(out: torch.Tensor, loss: str) -> torch.Tensor:
    if loss == "random":
        return torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out.detach().clone()


def step(attention: Attention, rows: Tensors, grad_out: torch.Tensor) -> Tensors:
    return torch.autograd.grad(attention(*rows), rows, grad_out)


def times(
    peers: dict[str, Attention], rows: Tensors, grad_out: torch.Tensor, args: argparse.Namespace
) -> dict[tuple[str, str], float]:
    """Shortest seconds by (peer, what)."""
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, attention in peers.items():
        calls[name, "forward"] = torch.no_grad()(partial(attention, *rows))
        calls[name, "step"] = partial(step, attention, rows, grad_out)
    keys = {f"{name}, {what}": (name, what) for name, what in calls}
    found = best({text: calls[key] for text, key in keys.items()}, args.seconds, args.rounds)
    return {keys[text]: seconds for text, seconds in found.items()}


def relative(got: torch.Tensor, want: torch.Tensor) -> list[float]:
    """|got - want| / |want| of every head."""
    off = (got.double() - want.double()).flatten(2).norm(dim=2)
    return [float(x) for x in (off / want.double().flatten(2).norm(dim=2))[0]]


def dense_table(args: argparse.Namespace, printer: Printer) -> None:
    cells = []
    sides = [n for n in SIDES if n <= 1024] if args.quick else SIDES
    # One number of threads after the other: a second thread that has just worked goes on spinning.
    for threads, n in progress(list(itertools.product(args.threads, sides)), str):
        torch.set_num_threads(threads)
        rows = random_rows(n)
        peers = peers_of(rows, [DENSE])
        grad_out = torch.randn(rows[2].shape, generator=torch.Generator().manual_seed(1))
        exact = step(peers["SDPA"], rows, grad_out)
        found_gradients = step(peers["dense"], rows, grad_out)
        for got, want in zip(found_gradients, exact, strict=True):
            check(got, want)
        worst = max(max(relative(x, y)) for x, y in zip(found_gradients, exact, strict=True))
        found = times(peers, rows, grad_out, args)
        cells.append([str(n), str(threads), *time_cells(found, ("dense",)), f"{worst:.1e}"])
    columns = ["N", "threads", *time_columns(("dense",)), "gradients, worst to SDPA's"]
    printer.table(f"dense: {HEADS} heads, D {D}, random rows", columns, cells)


def time_columns(methods: Sequence[str]) -> list[str]:
    columns = []
    for what in ("forward", "step"):
        columns += [f"{name} {what}, ms" for name in ("SDPA", *methods)]
        columns += [f"{name} / SDPA" for name in methods]
    return columns


def time_cells(found: dict[tuple[str, str], float], methods: Sequence[str]) -> list[str]:
    cells = []
    for what in ("forward", "step"):
        cells += [f"{1e3 * found[name, what]:.1f}" for name in ("SDPA", *methods)]
        cells += [f"{found['SDPA', what] / found[name, what]:.2f}" for name in methods]
    return cells


def squares(args: argparse.Namespace) -> Iterator[Tensors]:
    layers = heads.layers("smollm2", "held-out")
    for layer in itertools.islice(layers, 1) if args.quick else layers:
        yield rows_of(layer)


def tiled_heads(args: argparse.Namespace) -> Iterator[Tensors]:
    """The last head of the first group of each layer, on its own."""
    for layer in heads.layers("smollm2", "held-out"):
        yield rows_of(heads.tiled(layer.head(2), TILED))


def tree_tables(args: argparse.Namespace, printer: Printer) -> None:
    works = {"SmolLM2 4096": squares} | ({} if args.quick else {f"tiled {TILED}": tiled_heads})
    cells, errors = [], []
    for name in progress(list(works)):
        measured = list(works[name](args))
        for threads in args.threads:
            torch.set_num_threads(threads)
            sums: dict[tuple[str, str], float] = {}
            for rows in measured:
                peers = peers_of(rows, [DENSE, TREE])
                found = times(peers, rows, torch.randn(rows[0].shape), args)
                sums = {key: sums.get(key, 0.0) + seconds for key, seconds in found.items()}
            cells.append([name, str(threads), *time_cells(sums, ("dense", "tree"))])
        errors += [[name, loss, *error_cells(measured, loss)] for loss in LOSSES]
    columns = ["rows ", "threads", *time_columns(("dense", "tree"))]
    printer.table("tree at tolerance .1, summed over calls", columns, cells)
    columns = ["rows ", "loss ", "heads"]
    for what in ("out", "grad_query", "grad_key", "grad_value"):
        columns += [f"{what}, median", "worst"]
    printer.table("Relative error to dense, a head", columns, errors)


def error_cells(measured: Sequence[Tensors], loss: str) -> list[str]:
    found: list[list[float]] = [[], [], [], []]
    for rows in measured:
        peers = peers_of(rows, [DENSE, TREE])
        outs = {name: peers[name](*rows) for name in ("dense", "tree")}
        # The loss is each method's own: both train on what they compute.
        gradients = {
            name: torch.autograd.grad(out, rows, gradient_of_out(out, loss))
            for name, out in outs.items()
        }
        pairs = zip(
            (outs["tree"].detach(), *gradients["tree"]),
            (outs["dense"].detach(), *gradients["dense"]),
            strict=True,
        )
        for values, (got, want) in zip(found, pairs, strict=True):
            values.extend(relative(got, want))
    cells = [str(len(found[0]))]
    for values in found:
        cells += [f"{np.median(values):.3f}", f"{max(values):.3f}"]
    return cells


def measure_memory(name: str, n: int, threads: int) -> float:
    """In the child: megabytes above the start at the peak of a step, with one head of n rows."""
    torch.set_num_threads(threads)
    rows = rows_of(heads.tiled(heads.stored("smollm2-7-2"), n))
    attention = peers_of(rows, [DENSE, TREE])[name]
    grad_out = torch.randn(rows[0].shape)
    few = tuple(x.detach()[:, :, :256].requires_grad_() for x in rows)
    step(attention, few, grad_out[:, :, :256])  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")
    start = status("VmRSS")
    step(attention, rows, grad_out)
    return (status("VmHWM") - start) / MB


def memory_table(args: argparse.Namespace, printer: Printer) -> None:
    if not Path("/proc/self/clear_refs").exists():
        printer.text("- left out: memory, which is read from Linux's /proc")
        return
    cells = []
    n = 4096 if args.quick else TILED
    for threads in args.threads:
        line = [str(n), str(threads)]
        for name in ("SDPA", "dense", "tree"):
            command = [sys.executable, __file__, "--child", json.dumps([name, n, threads])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            line.append(f"{float(done.stdout):.1f}")
        cells.append(line)
    given = 4 * 4 * n * D / MB
    printer.table(
        f"Peak memory of a step beyond its inputs, MB: one head; {given:.0f} are out and gradients",
        ["N", "threads", "SDPA", "dense", "tree"],
        cells,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="N to 1024; one layer, none tiled")
    parser.add_argument("--only", choices=["dense", "tree", "memory"], help="one of the parts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--markdown", action="store_true", help="markdown on a terminal too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seconds, args.rounds = (0.0, 2) if args.quick else (1.0, 3)
    return args


def main() -> None:
    args = parse()
    if args.child is not None:
        print(measure_memory(*json.loads(args.child)))
        return
    printer = Printer(args.markdown)
    one = torch.ones(1, 1, 1, 1)
    made = smyrf.attention(one, one, one, return_stats=True)[1]
    capability = torch.backends.cpu.get_cpu_capability()
    printer.facts(
        {
            "machine": machine(),
            "smyrf": f"{smyrf.__version__}, instruction set {made.instruction_set}",
            "torch": f"{torch.__version__}, CPU capability {capability}",
        }
    )
    parts = {"dense": dense_table, "tree": tree_tables, "memory": memory_table}
    for name, part in parts.items():
        if args.only in (None, name):
            part(args, printer)


if __name__ == "__main__":
    main()
