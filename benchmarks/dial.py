"""What `tree` makes of its dial: true error over tolerance, and density, on heads of real models.

One pair is a (model, layer, head), a tolerance and a seed. Errors are measured against our `dense`.
Layers are called with all their heads, as a model calls them. What is measured and how is in
docs/benchmarks.md. Never a test: the exit code stays 0.

    python benchmarks/dial.py                held-out heads: MiniLM 512, Whisper 1500, SmolLM2 4096
    python benchmarks/dial.py --shorter      the same heads at Whisper 1024 and SmolLM2 2048
    python benchmarks/dial.py --tune         the heads that constants may be chosen by
    python benchmarks/dial.py --quick        one seed, one layer a model
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import heads
import numpy as np
from errors import measure
from printing import Printer, machine, progress

import smyrf
from smyrf.compare.output_file import written_aside

TOLERANCES = (0.02, 0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)
COLUMNS = ("heads ", "tolerance", "pairs", "gone dense", "opened", "<= 1", "<= 1.25", "worst")
DENSITY_COLUMNS = ("heads ", "tolerance", "heads", "density, median", "mean", "worst")


@dataclass(frozen=True)
class Pair:
    """What one head did at one tolerance and seed."""

    model: str
    n: int
    layer: int
    head: int
    tolerance: float
    seed: int
    error: float
    lse_error: float  # RMS, nats
    query_error: float  # 95th percentile over queries
    density: float
    dense: bool
    opened: bool  # a node was opened somewhere
    expected_error: float
    expected_lse_error: float


def pairs(layer: heads.Layer, tolerances: Sequence[float], seeds: Sequence[int]) -> Iterator[Pair]:
    """All pairs of a layer's heads."""
    q, k, v = layer.q, layer.k, layer.v
    gqa = {"enable_gqa": layer.grouped}
    dense, dense_lse = smyrf.attention(q, k, v, method="dense", return_lse=True, **gqa)
    for tolerance, seed in itertools.product(tolerances, seeds):
        options = {"method": "tree", "tolerance": tolerance, "seed": seed, **gqa}
        out, lse, did = smyrf.attention(q, k, v, return_lse=True, return_stats=True, **options)
        errors = measure(out, lse, dense, dense_lse, v)
        least = unopened(smyrf.plan(q, k, value=v, **options), q.shape[1])
        for head in range(q.shape[1]):
            density, is_dense = float(did.density[0, head]), bool(did.dense_heads[0, head])
            yield Pair(
                layer.model,
                q.shape[2],
                layer.layer,
                head,
                tolerance,
                seed,
                float(errors.out[head]),
                float(errors.lse[head]),
                float(errors.query[head]),
                density,
                is_dense,
                not is_dense and density > least[head] * (1 + 1e-9),
                float(did.expected_error[0, head]),
                float(did.expected_lse_error[0, head]),
            )


def unopened(plan: smyrf.Plan, query_heads: int) -> list[float]:
    """The density of each query head if no node were opened: sinks and roots over keys."""
    least = []
    for key_head in range(plan.key_heads):
        _, sinks, nodes = plan.tree(0, key_head)
        below = sum(children for _, _, _, children in nodes)  # every node but a root is one's child
        least.append((sinks + len(nodes) - below) / plan.keys)
    group = query_heads // plan.key_heads
    return [density for density in least for _ in range(group)]


def share(condition: Any) -> str:
    return f"{100 * np.mean(condition):.1f}%"


def dial_row(name: str, tolerance: str, rows: list[Pair]) -> list[str]:
    ratio = np.array([pair.error / pair.tolerance for pair in rows])
    lse = np.array([pair.lse_error / pair.tolerance for pair in rows])
    query = np.array([pair.query_error / pair.tolerance for pair in rows])
    ran = np.array([not pair.dense for pair in rows])
    opened = np.array([pair.opened for pair in rows])
    cells = [name, tolerance, str(len(rows)), str(len(rows) - int(ran.sum())), str(opened.sum())]
    cells += [share(ratio <= 1), share(ratio <= 1.25), f"{ratio.max():.2f}"]
    cells += [f"{np.median(ratio[opened]):.2f}" if opened.any() else "-"]
    cells += [share(lse <= 1), f"{lse.max():.2f}"]
    if not ran.any():
        return [*cells, "-", "-"]
    return [*cells, f"{np.median(query[ran]):.2f}", f"{query[ran].max():.2f}"]


def density_row(name: str, tolerance: str, rows: list[Pair]) -> list[str]:
    """Over the heads, and for density and error the mean over seeds is a head's value."""
    density, error = (_by_head(rows, field) for field in ("density", "error"))
    return [
        name,
        tolerance,
        str(len(density)),
        f"{np.median(density):.3f}",
        f"{density.mean():.3f}",
        f"{density.max():.3f}",
        f"{np.median(error):.3f}",
        f"{error.max():.3f}",
        f"{np.median(_by_head(rows, 'query_error')):.3f}",
    ]


def _by_head(rows: list[Pair], field: str) -> Any:
    of: dict[tuple[str, int, int], list[float]] = {}
    for pair in rows:
        of.setdefault((pair.model, pair.layer, pair.head), []).append(getattr(pair, field))
    return np.array([np.mean(values) for values in of.values()])


def tables(found: list[Pair], tolerances: Sequence[float], printer: Printer) -> None:
    groups = {f"{pair.model} {pair.n}": (pair.model, pair.n) for pair in found}
    dial, density = [], []
    for name, key in groups.items():
        for tolerance in tolerances:
            rows = [p for p in found if (p.model, p.n) == key and p.tolerance == tolerance]
            dial.append(dial_row(name, f"{tolerance:g}", rows))
            density.append(density_row(name, f"{tolerance:g}", rows))
    dial.append(dial_row("all", "all", found))
    printer.table(
        "True error over tolerance",
        [*COLUMNS, "median, opened", "lse <= 1", "lse, worst", "queries' p95", "p95, worst"],
        dial,
    )
    printer.table(
        "Density and measured error over heads",
        [*DENSITY_COLUMNS, "error, median", "worst", "queries' p95, median"],
        density,
    )


def bars(found: list[Pair], printer: Printer) -> None:
    """What is asked of the dial, over all pairs."""
    ratio = np.array([pair.error / pair.tolerance for pair in found])
    lse = np.array([pair.lse_error / pair.tolerance for pair in found])
    opened = np.array([pair.opened for pair in found])
    median = np.median(ratio[opened]) if opened.any() else 0.0
    asked = [
        ("error <= tolerance", np.mean(ratio <= 1), 0.95, "{:.1%}"),
        ("error <= 1.25 tolerance", np.mean(ratio <= 1.25), 0.99, "{:.1%}"),
        ("error <= 1.5 tolerance", np.mean(ratio <= 1.5), 1.0, "{:.1%}"),
        ("median error / tolerance where a node was opened", median, 0.65, "{:.2f}"),
        ("RMS lse error in nats <= tolerance", np.mean(lse <= 1), 0.95, "{:.1%}"),
    ]
    lines = [
        [what, form.format(value), form.format(bar), "met" if value >= bar else "not met"]
        for what, value, bar, form in asked
    ]
    printer.table("Bars, over all pairs", ["what ", "measured", "at least", "bar is "], lines)
    worst = sorted(found, key=lambda pair: pair.error / pair.tolerance)[-5:]
    names = ", ".join(
        f"{p.model} layer {p.layer} head {p.head} at {p.tolerance:g}, seed {p.seed}: "
        f"{p.error / p.tolerance:.2f}"
        for p in reversed(worst)
    )
    printer.text(f"Worst pairs: {names}.")


def chosen(args: argparse.Namespace) -> Iterable[heads.Layer]:
    split: heads.Split = "tuning" if args.tune else "held-out"
    for model in args.models:
        sizes = heads.SIZES[model]
        side = sizes[-1] if args.shorter else sizes[0]
        found = heads.layers(model, split, side)
        yield from itertools.islice(found, 1) if args.quick else found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, one layer a model")
    parser.add_argument("--tune", action="store_true", help="the heads for tuning")
    parser.add_argument("--shorter", action="store_true", help="Whisper 1024, SmolLM2 2048")
    parser.add_argument("--models", nargs="+", choices=list(heads.SIZES), default=list(heads.SIZES))
    parser.add_argument("--tolerances", type=float, nargs="+", default=list(TOLERANCES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every pair to a file")
    parser.add_argument("--markdown", action="store_true", help="markdown on a terminal too")
    args = parser.parse_args()
    args.seeds = SEEDS[:1] if args.quick else SEEDS
    return args


def main() -> None:
    args = parse()
    printer = Printer(args.markdown)
    every = list(chosen(args))
    printer.facts(
        {
            "machine": machine(),
            "smyrf": smyrf.__version__,
            "heads": f"{'tuning' if args.tune else 'held out'}, {sum(x.q.shape[1] for x in every)}",
            "seeds": ", ".join(map(str, args.seeds)),
        }
    )
    found: list[Pair] = []
    for layer in progress(every, lambda layer: f"{layer.model} {layer.layer}"):
        found += pairs(layer, args.tolerances, args.seeds)
    tables(found, args.tolerances, printer)
    bars(found, printer)
    if args.json is not None:
        with written_aside(args.json) as file:
            json.dump([asdict(pair) for pair in found], file, indent=1)


if __name__ == "__main__":
    main()
