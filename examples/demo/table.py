"""The end: what the steps found, in a table."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=common.ROOT / "build" / "demo")
    folder = parser.parse_args().folder
    picture, llama, document = (
        json.loads((folder / f"{step}.json").read_text())
        for step in ("picture", "llama_cpp", "long_document")
    )
    print(f"\n{common.processor()}, {common.threads()} threads, {datetime.date.today()}. Seconds:")
    line("", "without", "with smyrf", "", "what it costs")
    of_picture(picture)
    of_llama(llama)
    of_document(document)
    print(
        "\nThe longer the input, the more it saves; below about 2,000 rows the default is\n"
        "exact and saves little. On your own model: .venv/bin/smyrf compare MODEL INPUT"
    )


def line(what: str, before: str, after: str, ratio: str, costs: str) -> None:
    print(f"{what:31}{before:>9}{after:>12}{ratio:>8}  {costs}".rstrip())


def compared(what: str, before: float, after: float, costs: str) -> None:
    digits = 3 if before < 1 else 2  # so that the ratio follows from what is printed
    line(what, f"{before:.{digits}f}", f"{after:.{digits}f}", f"{before / after:.1f} x", costs)


def of_picture(found: dict[str, Any]) -> None:
    (_, exact), *trees = found["methods"].items()
    for name, tree in trees:
        label = f"photograph, {found['rows']:,} rows" if tree is trees[0][1] else f"  {name}"
        compared(label, exact["seconds"], tree["seconds"], f"{exact['psnr'] - tree['psnr']:.1f} dB")


def of_llama(found: dict[str, Any]) -> None:
    alone, ours = found["runs"].values()
    more = ours["perplexity"] / alone["perplexity"] - 1
    what = f"llama.cpp, {found['tokens']:,} tokens"
    compared(what, alone["seconds"], ours["seconds"], f"perplexity {more:+.1%}")


def of_document(found: dict[str, Any]) -> None:
    exact, _, auto, tree = found["methods"].values()
    longest, tokens = exact["seconds"][-1], found["tokens"][-1]
    compared(
        f"encoder, {tokens:,} tokens", longest, auto["seconds"][-1], f"cosine {auto['cosine']:.4f}"
    )
    compared("  tree, tolerance 10%", longest, tree["seconds"][-1], f"cosine {tree['cosine']:.4f}")
    for name, (sdpa, dense, _, _) in found["own"].items():
        compared(name, sdpa, dense, "nothing: exact")


if __name__ == "__main__":
    main()
