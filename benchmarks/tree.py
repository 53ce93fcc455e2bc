"""Speed of `tree` beside SDPA and our `dense` on the same rows, calibration included.

Ratios are of speed, over time summed over a work's heads, that of `tree` the mean of three seeds
(`equal`: seed 0); above 1, `tree` is faster. What is measured and how is in docs/benchmarks.md.
Never a test: the exit code stays 0.

    python benchmarks/tree.py              every table, float32, 1 and 2 threads
    python benchmarks/tree.py --quick      one layer a model, N up to 16384
    python benchmarks/tree.py --only sweep
    python benchmarks/tree.py --only equal --threads 1    tree at a true error of .1
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import heads
import numpy as np
import photograph
import torch
from errors import measure
from printing import Printer, machine, progress
from timing import best, entry
from torch.nn.functional import scaled_dot_product_attention as sdpa

import smyrf

TOLERANCES = (0.1, 0.05)
# Which rows are sampled decides how far nodes are opened: times of tree are means over these.
SEEDS = (0, 1, 2)
SWEEP = (4096, 8192, 16384, 32768, 65536)
# Above so many rows, SDPA and dense run every so-manyth query only and count as many times that:
# both take their time by pairs, and at 65536 a head would take half a minute a round.
WHOLE = 16384


@dataclass(frozen=True)
class Call:
    """One call: q (1, Hq, N, D), k and v (1, Hkv, N, D), float32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float | None = None

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "enable_gqa": self.q.shape[1] != self.k.shape[1]}


def call_of(layer: heads.Layer) -> Call:
    return Call(*(torch.from_numpy(x) for x in (layer.q, layer.k, layer.v)))


@dataclass(frozen=True)
class Work:
    """Calls whose times are summed, and what is asked of their sum at tolerance .1, 1 thread."""

    name: str
    calls: Callable[[], Iterable[Call]]
    bar: float = 0.0
    goal: float = 0.0
    planning: float = 0.0  # bar of planning's share of SDPA's time


@dataclass
class Sums:
    """Seconds summed over calls, those of tree means over seeds; what each head did by tolerance
    and seed."""

    n: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    planning: dict[float, float] = field(default_factory=dict)
    error: dict[float, list[float]] = field(default_factory=dict)
    density: dict[float, list[float]] = field(default_factory=dict)
    dense: dict[float, int] = field(default_factory=dict)

    def faster(self, name: str, than: str) -> float:
        return self.seconds[than] / self.seconds[name]


def tree_name(tolerance: float) -> str:
    return f"tree {tolerance:g}"


def time_call(call: Call, threads: int, args: argparse.Namespace, sums: Sums, auto: bool) -> None:
    """Adds a call's times, errors and counts."""
    torch.set_num_threads(threads)
    step = max(1, call.n // WHOLE)
    rows = call.q[:, :, ::step].contiguous()
    peers: dict[str, Callable[[], Any]] = {
        "SDPA": partial(sdpa, rows, call.k, call.v, **call.options)
    }
    dense, peers["dense"] = entry(rows, call.k, call.v, threads, **call.options)
    trees = {
        (tolerance, seed): partial(
            entry,
            *(call.q, call.k, call.v, threads),
            **{"method": "tree", "tolerance": tolerance, "seed": seed, **call.options},
        )
        for tolerance, seed in itertools.product(args.tolerances, SEEDS)
    }
    outs: dict[tuple[float, int], torch.Tensor] = {}
    for (tolerance, seed), tree in trees.items():
        outs[tolerance, seed], peers[f"{tree_name(tolerance)} of {seed}"] = tree()
    if auto:
        _, peers["auto"] = entry(call.q, call.k, call.v, threads, **(call.options | AUTO))
    found = best(peers, args.seconds, args.rounds)
    sums.n = call.n
    for name, seconds in found.items():
        times = step if name in ("SDPA", "dense") else 1
        share = 1 / len(SEEDS) if name.startswith("tree") else 1
        name = name.split(" of ")[0]
        sums.seconds[name] = sums.seconds.get(name, 0.0) + times * share * seconds
    for (tolerance, seed), out in outs.items():
        statistics = trees[tolerance, seed](with_statistics=True)[1]
        did = [statistics() for _ in range(args.rounds)]
        planning = min(float(x.head_planning_seconds.sum()) for x in did) / len(SEEDS)
        sums.planning[tolerance] = sums.planning.get(tolerance, 0.0) + planning
        errors = measure(out[:, :, ::step].numpy(), None, dense.numpy(), None, call.v.numpy()).out
        sums.error.setdefault(tolerance, []).extend(errors)
        sums.density.setdefault(tolerance, []).extend(did[0].density[0])
        sums.dense[tolerance] = sums.dense.get(tolerance, 0) + int(did[0].dense_heads.sum())


AUTO = {"method": "auto"}


def measure_work(work: Work, args: argparse.Namespace, auto: bool = False) -> dict[int, Sums]:
    """Sums by number of threads."""
    by_threads = {threads: Sums() for threads in args.threads}
    calls = list(work.calls())
    # One number of threads after the other: a second thread that has just worked goes on spinning.
    for threads, sums in by_threads.items():
        for call in calls:
            time_call(call, threads, args, sums, auto)
    return by_threads


def model_calls(model: str, side: int, args: argparse.Namespace) -> Iterator[Call]:
    layers = heads.layers(model, "tuning" if args.tune else "held-out", side)
    for layer in itertools.islice(layers, 1) if args.quick else layers:
        yield call_of(layer)


def single_heads(args: argparse.Namespace, side: int | None = None) -> list[heads.Layer]:
    """One head of each SmolLM2 layer, on its own: the last of the first group."""
    layers = heads.layers("smollm2", "tuning" if args.tune else "held-out", side)
    return [layer.head(2) for layer in (itertools.islice(layers, 1) if args.quick else layers)]


def tiled_calls(n: int, args: argparse.Namespace) -> Iterator[Call]:
    for layer in single_heads(args):
        yield call_of(heads.tiled(layer, n))


def photograph_calls(side: int) -> Iterator[Call]:
    x, v, scale = photograph.rows(side)
    yield Call(torch.from_numpy(x), torch.from_numpy(x), torch.from_numpy(v), scale)


def works(args: argparse.Namespace) -> list[Work]:
    found = [
        Work("MiniLM 512", partial(model_calls, "minilm", 512, args)),
        Work("Whisper 1500", partial(model_calls, "whisper", 1500, args), 1.5, 2.5),
        Work("SmolLM2 4096", partial(model_calls, "smollm2", 4096, args), 4.5, 8.0, 0.10),
        Work("SmolLM2 4096, a head a call", lambda: map(call_of, single_heads(args))),
    ]
    if not photograph.missing():
        found += [
            Work("photograph 64^2", partial(photograph_calls, 64)),
            Work("photograph 128^2", partial(photograph_calls, 128), 10.0, 20.0),
        ]
        if not args.quick:
            found.append(Work("photograph 256^2", partial(photograph_calls, 256)))
    return found


def sweep(args: argparse.Namespace) -> list[Work]:
    asked = {16384: (12.0, 20.0, 0.04), 65536: (25.0, 50.0, 0.0)}
    sides = [n for n in SWEEP if n <= 16384] if args.quick else SWEEP
    return [Work(f"tiled {n}", partial(tiled_calls, n, args), *asked.get(n, ())) for n in sides]


def table(
    title: str, list_of_works: list[Work], args: argparse.Namespace, printer: Printer
) -> dict[str, dict[int, Sums]]:
    found = {}
    for work in progress(list_of_works, lambda work: work.name):
        found[work.name] = measure_work(work, args)
    cells = []
    for (name, by_threads), tolerance in itertools.product(found.items(), args.tolerances):
        for threads, sums in by_threads.items():
            tree = tree_name(tolerance)
            one = by_threads.get(1)
            twice = one.seconds[tree] / sums.seconds[tree] if one and threads > 1 else None
            share = sums.planning[tolerance] / sums.seconds["SDPA"]
            error, density = sums.error[tolerance], sums.density[tolerance]
            cells.append(
                [name, f"{tolerance:g}", str(threads), str(len(density) // len(SEEDS))]
                + [f"{1e3 * sums.seconds[key]:.1f}" for key in ("SDPA", "dense", tree)]
                + [f"{sums.faster(tree, than):.2f}" for than in ("SDPA", "dense")]
                + [f"{100 * share:.1f}%" if threads == 1 else "-"]
                + [f"{np.median(error):.3f}", f"{max(error):.3f}"]
                + [f"{np.mean(density):.3f}", f"{np.mean(density) * sums.n:.0f}"]
                + [
                    f"{sums.dense[tolerance] / len(SEEDS):.3g}",
                    "-" if twice is None else f"{twice:.2f}",
                ]
            )
    columns = ["rows ", "tolerance", "threads", "heads", "SDPA ms", "dense ms", "tree ms"]
    columns += ["tree / SDPA", "tree / dense", "planning / SDPA", "error, median", "worst"]
    columns += ["density, mean", "pairs a query", "gone dense", "over 1 thread"]
    printer.table(title, columns, cells)
    return found


def auto_table(args: argparse.Namespace, printer: Printer) -> None:
    """What `auto` takes where dense is near, beside both that it chooses from."""
    list_of_works = [
        Work("MiniLM 512", partial(model_calls, "minilm", 512, args)),
        Work("SmolLM2 512", partial(model_calls_cut, 512, args)),
        Work("SmolLM2 1024", partial(model_calls_cut, 1024, args)),
        Work("SmolLM2 1536", partial(model_calls_cut, 1536, args)),
        Work("Whisper 1024", partial(model_calls, "whisper", 1024, args)),
        Work("Whisper 1500", partial(model_calls, "whisper", 1500, args)),
        Work("SmolLM2 2048", partial(model_calls, "smollm2", 2048, args)),
        Work("SmolLM2 2048, a head a call", lambda: map(call_of, single_heads(args, 2048))),
        Work("SmolLM2 4096", partial(model_calls, "smollm2", 4096, args)),
    ]
    cells, worst = [], float("inf")
    for work in progress(list_of_works, lambda work: work.name):
        for threads, sums in measure_work(work, args, auto=True).items():
            trees = [sums.faster(tree_name(x), "SDPA") for x in args.tolerances]
            ratio, dense = sums.faster("auto", "SDPA"), sums.faster("dense", "SDPA")
            if sums.n <= 1024:
                worst = min(worst, ratio)
            better = max(dense, trees[-1])  # auto's own tolerance is .05
            cells.append(
                [work.name, str(threads), str(len(sums.density[args.tolerances[0]]) // len(SEEDS))]
                + [f"{x:.2f}" for x in (ratio, ratio / better, dense, *trees)]
            )
    last = f"tree {args.tolerances[-1]:g}"
    columns = ["rows ", "threads", "heads", "auto / SDPA", f"auto / better of dense, {last}"]
    columns += ["dense / SDPA", *(f"tree {x:g} / SDPA" for x in args.tolerances)]
    printer.table("Where dense is near: speed over SDPA's", columns, cells)
    met = "met" if worst >= 1 else "not met"
    printer.text(f"Bar of auto / SDPA at N 512 and 1024, 1.0: {met} (worst {worst:.2f}).")
    printer.text()


def at_error(call: Call, target: float) -> float:
    """The tolerance, to a tenth, up to which a call of one head errs by no more than so much."""
    dense, run = entry(call.q, call.k, call.v, 0, **call.options)
    run()
    low, high = math.log(target) - 1.0, math.log(target) + 2.0
    least, most = low, high
    while high - low > 0.1:
        middle = (low + high) / 2
        options = {"method": "tree", "tolerance": math.exp(middle), **call.options}
        out, run = entry(call.q, call.k, call.v, 0, **options)
        run()
        error = measure(out.numpy(), None, dense.numpy(), None, call.v.numpy()).out[0]
        low, high = (low, middle) if error > target else (middle, high)
    if low == least or high == most:
        raise SystemExit(f"tree errs by {target:g} at no tolerance that was tried")
    return math.exp(low)


def equal_table(args: argparse.Namespace, printer: Printer) -> None:
    """What the dial's caution costs: at a tolerance, and where the error itself is as large."""
    target, cells = 0.1, []
    list_of_works = [
        Work("SmolLM2 4096", lambda: map(call_of, single_heads(args))),
        Work("tiled 16384", partial(tiled_calls, 16384, args)),
    ]
    for work in progress(list_of_works, lambda work: work.name):
        calls = list(work.calls())
        tolerances = [at_error(call, target) for call in calls]
        for threads in args.threads:
            torch.set_num_threads(threads)
            seconds = {"SDPA": 0.0, "dense": 0.0, "asked": 0.0, "equal": 0.0}
            for call, tolerance in zip(calls, tolerances, strict=True):
                rows = (call.q, call.k, call.v, threads)
                options = call.options | {"method": "tree"}
                peers = {
                    "SDPA": partial(sdpa, *rows[:3], **call.options),
                    "dense": entry(*rows, **call.options)[1],
                    "asked": entry(*rows, tolerance=target, **options)[1],
                    "equal": entry(*rows, tolerance=tolerance, **options)[1],
                }
                for name, time in best(peers, args.seconds, args.rounds).items():
                    seconds[name] += time
            cells.append(
                [work.name, str(threads), str(len(calls))]
                + [f"{1e3 * time:.1f}" for time in seconds.values()]
                + [f"{seconds['SDPA'] / seconds[name]:.2f}" for name in ("asked", "equal")]
                + [f"{np.median(tolerances):.3f}", f"{min(tolerances):.3f}"]
            )
    asked = tree_name(target)
    columns = ["rows ", "threads", "heads", "SDPA ms", "dense ms", f"{asked} ms", "equal ms"]
    columns += [f"{asked} / SDPA", "equal / SDPA", "equal: tolerance, median", "least"]
    printer.table(f"A head a call, beside tree where it errs by {target:g}", columns, cells)


def model_calls_cut(side: int, args: argparse.Namespace) -> Iterator[Call]:
    """The first rows of SmolLM2's squares of 2048."""
    for call in model_calls("smollm2", 2048, args):
        yield Call(*(x[:, :, :side].contiguous() for x in (call.q, call.k, call.v)))


def bars(list_of_works: list[Work], found: dict[str, dict[int, Sums]], printer: Printer) -> None:
    """Tolerance .1, one thread; two threads over one for a head on its own."""

    def line(what: str, value: float, bar: float, goal: float, most: bool = False) -> None:
        def verdict(limit: float) -> str:
            if not limit:
                return "-"
            met = value <= limit if most else value >= limit
            return f"{limit:g} {'met' if met else 'not met'}"

        lines.append(
            [what, f"{value:.3f}" if most else f"{value:.2f}", verdict(bar), verdict(goal)]
        )

    lines: list[list[str]] = []
    for work in list_of_works:
        sums = found[work.name].get(1)
        if sums is None or 0.1 not in sums.planning:
            continue
        if work.bar:
            value = sums.faster(tree_name(0.1), "SDPA")
            line(f"{work.name}: tree / SDPA", value, work.bar, work.goal)
        if work.planning:
            value = sums.planning[0.1] / sums.seconds["SDPA"]
            line(f"{work.name}: planning / SDPA's time", value, work.planning, 0.0, most=True)
        two = found[work.name].get(2)
        if two is not None and work.name.startswith(("tiled", "SmolLM2 4096, a head")):
            tree = tree_name(0.1)
            value = sums.seconds[tree] / two.seconds[tree]
            line(f"{work.name}: 2 threads over 1", value, 1.7, 0.0)
    if lines:
        columns = ["what ", "measured", "bar ", "goal "]
        printer.table("Bars at tolerance .1, one thread", columns, lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one layer a model, N to 16384")
    parser.add_argument("--tune", action="store_true", help="the heads for tuning")
    parser.add_argument(
        "--only", choices=["works", "sweep", "auto", "equal"], help="one of the tables"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tolerances", type=float, nargs="+", default=list(TOLERANCES))
    parser.add_argument("--markdown", action="store_true", help="markdown on a terminal too")
    args = parser.parse_args()
    args.seconds = 0.0 if args.quick else 0.3
    args.rounds = 3
    return args


def main() -> None:
    args = parse()
    printer = Printer(args.markdown)
    capability = torch.backends.cpu.get_cpu_capability()
    one = torch.ones(1, 1, 1, 1)
    made = entry(one, one, one, 1, with_statistics=True)[1]()
    printer.facts(
        {
            "machine": machine(),
            "smyrf": f"{smyrf.__version__}, instruction set {made.instruction_set}",
            "torch": f"{torch.__version__}, CPU capability {capability}",
            "heads": "for tuning" if args.tune else "held out",
        }
    )
    if args.only in (None, "works") and photograph.missing():
        printer.text(f"- left out: the photograph; it needs {photograph.missing()}")
    every: list[Work] = []
    found: dict[str, dict[int, Sums]] = {}
    if args.only in (None, "works"):
        every += works(args)
        found |= table("Real heads and a photograph", works(args), args, printer)
    if args.only in (None, "sweep"):
        every += sweep(args)
        found |= table("Heads tiled with noise .3", sweep(args), args, printer)
    if args.only in (None, "auto"):
        auto_table(args, printer)
    if args.only in (None, "equal"):
        equal_table(args, printer)
    bars(every, found, printer)


if __name__ == "__main__":
    main()
