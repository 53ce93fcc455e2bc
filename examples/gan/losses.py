"""The losses of several runs in one plot, read from their checkpoints.

python examples/gan/losses.py runs/dense runs/lsh runs/tree --plot losses.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import checkpoint
import numpy as np
import pictures
from train import FORMAT

from smyrf.compare.plot import check_plot
from smyrf.compare.problem import Problem


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train.py wrote")
    parser.add_argument("--plot", type=Path, default=Path("losses.svg"), help=".png, .svg or .pdf")
    settings = parser.parse_args(arguments)
    try:
        check_plot(settings.plot)
        names = [run.resolve().name for run in settings.runs]
        if len(set(names)) < len(names):
            names = [str(run) for run in settings.runs]
        if len(set(names)) < len(names):
            raise Problem("a run is given twice")
        named = {
            name: checkpoint.load(run / "checkpoint.pt", FORMAT)["losses"]
            for name, run in zip(names, settings.runs, strict=True)
        }
        plot = pictures.losses_side_by_side(named, settings.plot.suffix.lower())
        checkpoint.write_whole(settings.plot, plot)
    except Problem as problem:
        sys.exit(f"losses.py: {problem}")
    print("| run | steps | discriminator, last fifth | generator, last fifth |\n|---|---|---|---|")
    for name, kept in named.items():
        steps = len(kept[0])
        means = [f"{np.mean(losses[-max(1, steps // 5) :]):.3f}" for losses in kept]
        print(f"| {name} | {steps} | {' | '.join(means)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
