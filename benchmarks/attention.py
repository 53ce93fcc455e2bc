"""Speed of smyrf beside torch.nn.functional.scaled_dot_product_attention (SDPA) in the same run.

What is measured and how is in docs/benchmarks.md. Never a test: bars that are not met are printed,
and the exit code stays 0.

    python benchmarks/attention.py --quick                            a minute or two
    python benchmarks/attention.py                                    everything
    python benchmarks/attention.py --instruction-set AVX2 --depths 64
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from printing import Printer, machine, progress
from timing import best, check, entry, kernels, time_mm
from torch.nn.functional import scaled_dot_product_attention as sdpa

import smyrf
from smyrf import _core
from smyrf.compare.choice import lsh_dials

DENSITIES = (0.25, 0.5)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# A round of a row runs SDPA and dense, both causal too, and lsh: so many times dense's pairs.
ROUND = 1 + 1 + 0.5 + 0.5 + sum(DENSITIES)


@dataclass(frozen=True)
class Row:
    """Best seconds of each peer for one shape."""

    threads: int
    heads: int
    depth: int
    n: int
    mm: float
    seconds: dict[str, float]

    @property
    def flops(self) -> float:
        return 4.0 * self.heads * self.n**2 * self.depth

    def gflops(self, name: str) -> float:
        return self.flops / self.seconds[name] / 1e9

    def faster(self, name: str, than: str) -> float:
        return self.seconds[than] / self.seconds[name]

    @property
    def of_mm(self) -> float:
        return self.gflops("dense") / (2 * 1024**3 / self.mm / 1e9)

    @property
    def place(self) -> str:
        return f"D {self.depth}, N {self.n}"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def time_row(shape: tuple[int, int, int, int], args: argparse.Namespace) -> Row | str:
    """The row of (threads, heads, D, N), or why it was left out."""
    threads, heads, depth, n = shape
    mm = time_mm(threads)
    once = ROUND * 4 * heads * n**2 * depth / (0.8 * 2 * 1024**3 / mm)  # about: a little below mm
    rounds = args.rounds if args.rounds * once <= args.budget else 2
    if rounds * once > args.budget:
        return (
            f"{count(threads, 'thread')}, {count(heads, 'head')}, D {depth}, N {n}: {rounds} "
            f"rounds need about {rounds * once:.0f} s, a row may take {args.budget:g} s (--budget)"
        )
    q, k, v = (torch.randn(1, heads, n, depth).to(DTYPES[args.dtype]) for _ in range(3))
    peers: dict[str, Callable[[], Any]] = {"sdpa": partial(sdpa, q, k, v)}
    out, peers["dense"] = entry(q, k, v, threads)
    peers["causal sdpa"] = partial(sdpa, q, k, v, is_causal=True)
    causal_out, peers["causal"] = entry(q, k, v, threads, is_causal=True)
    for density in DENSITIES:
        dials = lsh_dials(density, n)
        _, peers[f"lsh {density}"] = entry(q, k, v, threads, method="lsh", **dials)
    seconds = best(peers, args.seconds, rounds)
    check(out, peers["sdpa"]())
    check(causal_out, peers["causal sdpa"]())
    return Row(threads, heads, depth, n, min(mm, time_mm(threads)), seconds)


def speed(args: argparse.Namespace, printer: Printer) -> list[Row]:
    """The table of squares, Nq = Nk = N."""
    torch.manual_seed(0)
    shapes = list(itertools.product(args.threads, args.heads, args.depths, args.n))
    found = [time_row(shape, args) for shape in progress(shapes)]
    rows = [row for row in found if isinstance(row, Row)]
    columns = ["threads", "heads", "D", "N", "SDPA GFLOP/s", "dense GFLOP/s", "dense / SDPA"]
    columns += ["dense / mm", "causal / SDPA"]
    for density in DENSITIES:
        columns += [f"lsh {density:g} / SDPA", f"lsh {density:g} / dense"]
    cells = []
    for row in rows:
        line = [str(x) for x in (row.threads, row.heads, row.depth, row.n)]
        line += [f"{row.gflops('sdpa'):.1f}", f"{row.gflops('dense'):.1f}"]
        ratios = [row.faster("dense", "sdpa"), row.of_mm, row.faster("causal", "causal sdpa")]
        for density in DENSITIES:
            ratios += [row.faster(f"lsh {density}", than) for than in ("sdpa", "dense")]
        cells.append(line + [f"{ratio:.2f}" for ratio in ratios])
    printer.table(f"Speed, {args.dtype}, Nq = Nk = N; ratios of speed", columns, cells)
    for threads in args.threads:
        rates = [2 * 1024**3 / row.mm / 1e9 for row in rows if row.threads == threads]
        if rates:
            median, of = statistics.median(rates), count(threads, "thread")
            printer.text(
                f"- torch.mm 1024^3 float32, {of}: {median:.1f} GFLOP/s, median of the rows "
                f"({min(rates):.1f} to {max(rates):.1f})"
            )
    for reason in found:
        if isinstance(reason, str):
            printer.text(f"- left out: {reason}")
    printer.text()
    return rows


def decoding(args: argparse.Namespace, printer: Printer) -> None:
    """One query against many keys."""
    cells = []
    shapes = itertools.product(args.threads, ((1, 1), (9, 3)), ("float32", "bfloat16"), args.keys)
    for threads, (heads, key_heads), dtype, keys in progress(list(shapes)):
        torch.set_num_threads(threads)
        q = torch.randn(1, heads, 1, 64).to(DTYPES[dtype])
        k, v = (torch.randn(1, key_heads, keys, 64).to(DTYPES[dtype]) for _ in range(2))
        gqa = heads != key_heads
        out, call = entry(q, k, v, threads, enable_gqa=gqa)
        theirs = partial(sdpa, q, k, v, enable_gqa=gqa)
        seconds = best({"sdpa": theirs, "dense": call}, args.seconds / 2, args.rounds)
        check(out, theirs())
        read = 2 * k.numel() * k.element_size()
        cells.append(
            [str(threads), f"{heads} over {key_heads}", dtype, str(keys)]
            + [f"{1e6 * seconds[name]:.1f}" for name in ("sdpa", "dense")]
            + [f"{seconds['sdpa'] / seconds['dense']:.2f}", f"{read / seconds['dense'] / 1e9:.1f}"]
        )
    columns = ["threads", "heads ", "dtype ", "Nk", "SDPA us", "dense us", "dense / SDPA"]
    printer.table("Decoding, Nq = 1, D 64", [*columns, "dense, keys and values GB/s"], cells)


def bars(rows: Iterable[Row], printer: Printer) -> None:
    """The bars of the first release, from the rows as measured."""

    def line(group: str, what: str, worst: float, where: str, bar: float, goal: float) -> None:
        verdicts = [
            "-" if not limit else f"{limit:g} {'met' if worst >= limit else 'not met'}"
            for limit in (bar, goal)
        ]
        lines.append([group, what, f"{worst:.2f}", where, *verdicts])

    lines: list[list[str]] = []
    ratio = Row.faster
    for (threads, heads), members in itertools.groupby(rows, lambda row: (row.threads, row.heads)):
        every = [row for row in members if row.n >= 512]
        group = f"{count(threads, 'thread')}, {count(heads, 'head')}"
        main = [row for row in every if row.depth == 64 and row.n >= 1024]
        if main:
            low = min(main, key=lambda row: ratio(row, "dense", "sdpa"))
            worst = ratio(low, "dense", "sdpa")
            line(group, "dense / SDPA, D 64, N >= 1024", worst, low.place, 1.0, 1.2)
            low = min(main, key=lambda row: row.of_mm)
            line(group, "dense / mm, D 64, N >= 1024", low.of_mm, low.place, 0.7, 0.85)
        if every:
            low = min(every, key=lambda row: ratio(row, "dense", "sdpa"))
            worst = ratio(low, "dense", "sdpa")
            line(group, "dense / SDPA, every D, N >= 512", worst, low.place, 1.0, 0)
    if lines:
        printer.table(
            "Bars: the worst row of each group",
            ["rows ", "what ", "worst", "at ", "bar ", "goal "],
            lines,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few shapes and short times")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 12])
    parser.add_argument("--depths", type=int, nargs="+", metavar="D", help="default 32 64 128")
    parser.add_argument("--n", type=int, nargs="+", help="default powers of two, 128 to 16384")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--instruction-set", default="", metavar="NAME", help="for example AVX2")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds a row may take")
    parser.add_argument("--markdown", action="store_true", help="markdown on a terminal too")
    args = parser.parse_args()
    args.seconds = 0.3 if args.quick else 2.0
    args.rounds = 2 if args.quick else 3
    args.keys = [1024, 65536] if args.quick else [1024, 4096, 16384, 65536]
    args.depths = args.depths or ([64] if args.quick else [32, 64, 128])
    args.n = args.n or ([128, 512, 1024, 4096] if args.quick else [2**i for i in range(7, 15)])
    try:
        _core.force_instruction_set(args.instruction_set)
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse()
    printer = Printer(args.markdown)
    one = torch.ones(1, 1, 1, 1)
    made = entry(one, one, one, 1, with_statistics=True)[1]()
    capability = torch.backends.cpu.get_cpu_capability()
    forced = " (forced)" if args.instruction_set else ""
    printer.facts(
        {
            "machine": machine(),
            "smyrf": f"{smyrf.__version__}, instruction set {made.instruction_set}{forced}",
            "torch": f"{torch.__version__}, CPU capability {capability}",
            "SDPA's kernels": kernels(args.depths, DTYPES[args.dtype]),
            "threads": ", ".join(map(str, args.threads)),
        }
    )
    rows = speed(args, printer)
    decoding(args, printer)
    if args.dtype == "float32":
        bars(rows, printer)
    else:
        printer.text("The bars are for float32.")


if __name__ == "__main__":
    main()
