"""Fine-tuning with each method, and answers of each model by each method, over several seeds.

    python examples/classify/table.py --out classify-table

OUT/table.json gets each cell as soon as it is known, and OUT/*.pt the weights: run again, and only
what is missing is computed. About an hour on two cores. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from checkpoint import write_whole, writing_to
from classifier import Advance, answer, attend_by, encode, load_classifier, optimizer_of, step
from corpus import Corpus, read
from figures import Figures, cell_name, step_name
from train import Run, add_options, bar, check, trained

from smyrf.compare.choice import Choice
from smyrf.compare.measure import PeakMemory
from smyrf.compare.problem import Problem

DENSE, LSH, TREE = Choice("dense"), Choice("lsh", 0.5), Choice("tree", dials={"tolerance": 0.1})
# What is trained with, and the share of a document's tokens that is seen, in answers too.
TRAINED = {"dense": (DENSE, 1.0), "lsh 0.5": (LSH, 1.0), "tree 0.1": (TREE, 1.0)}
TRAINED["dense, half"] = (DENSE, 0.5)
INFERRED = {"dense": DENSE, "lsh 0.5": LSH, "lsh 0.25": Choice("lsh", 0.25), "tree 0.1": TREE}
# Whose answers say what each way of attending costs: (trained with, by).
WAYS = {label: (label, label if label in INFERRED else "dense") for label in TRAINED}
WAYS["lsh 0.25"] = ("dense", "lsh 0.25")
# Of a step, for its memory and time: "eager" forms all weights, as BERT was written.
STEPS = ("eager", *TRAINED)
TIMED_STEPS = 3
TRAINING_COST = 3  # a document's, in answers
# What a cell depends on; cells of one file share it.
SHARED = ("model", "length", "train", "test", "batch", "threads")


class Table:
    """The cells of a file, by name; each is written as it comes.

    Raises Problem where the file was made with other settings, or is none of this program's.
    """

    def __init__(self, path: Path, shared: dict[str, Any]) -> None:
        self.path, self.shared = path, shared
        self.cells: dict[str, Any] = {}
        if path.exists():
            try:
                content = json.loads(path.read_text())
                made, self.cells = dict(content["settings"]), dict(content["cells"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise Problem(f"{path}: is no table of this program ({error})") from error
            if made != shared:
                differ = [name for name in shared if made.get(name) != shared[name]]
                raise Problem(
                    f"{path}: was made with another {' and '.join(differ)}; give the same, or "
                    "another --out"
                )

    def add(self, name: str, cell: dict[str, Any]) -> None:
        self.cells[name] = cell
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.cells.items()]
        cells = ",\n".join(lines)
        content = f'{{"settings": {json.dumps(self.shared)}, "cells": {{\n{cells}\n}}}}\n'
        write_whole(self.path, content.encode())


Row = tuple[int, str]  # seed, what was trained with


def fill(settings: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Computes the cells that are missing; all of them."""
    with writing_to(settings.out):
        return fill_alone(settings, arguments)


def fill_alone(settings: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    torch.set_num_threads(settings.threads)
    corpus = read(settings.corpus, settings.train, settings.test)
    shared = {name: getattr(settings, name) for name in SHARED} | {"corpus": corpus.fingerprint}
    table = Table(settings.out / "table.json", shared)
    missing: dict[Row, list[str]] = {}
    total = 0
    for seed in range(settings.seeds):
        for label in TRAINED:
            left = [name for name in INFERRED if cell_name(label, seed, name) not in table.cells]
            if left:
                missing[seed, label] = left
                there = weights_path(settings, label, seed).exists()
                total += len(left) * settings.test + settings.train * TRAINING_COST * (not there)
    with bar() as progress:
        task = progress.add_task("", total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        def add(name: str, cell: dict[str, Any], found: str) -> None:
            table.add(name, cell)
            left = progress.tasks[0].time_remaining
            rest = "" if left is None else f"; about {left / 60:.0f} minutes left"
            progress.console.print(f"{name}: {found}{rest}", highlight=False, soft_wrap=True)

        for label in STEPS:
            if (name := step_name(label)) not in table.cells:
                cell = measure_apart(label, arguments)
                add(name, cell, f"{cell['seconds']:.2f} s")
        for (seed, label), left in missing.items():
            fill_row(settings, corpus, (seed, label), left, add, advance)
    return table.cells


def fill_row(
    settings: argparse.Namespace,
    corpus: Corpus,
    row: Row,
    missing: list[str],
    add: Callable[[str, dict[str, Any], str], None],
    advance: Advance,
) -> None:
    """What one trained model answers by each method that is missing."""
    seed, label = row
    run = run_of(settings, label, seed)
    got = trained(
        run,
        corpus,
        weights_path(settings, label, seed),
        lambda count: advance(TRAINING_COST * count),
    )
    losses = [round(loss, 5) for loss in got.losses]
    last = losses[-max(1, len(losses) // 10) :]
    found = f"trained, loss of the last tenth {sum(last) / len(last):.3f}"
    add(f"{label}, seed {seed}", {"losses": losses, "seconds": got.seconds}, found)
    test = encode(got.tokenizer, corpus.test, run.length)
    for name in missing:
        attend_by(got.model, INFERRED[name], test, seed)
        answers = answer(got.model, test, run.batch, advance)
        cell = {**asdict(answers), "correct": [int(right) for right in answers.correct]}
        cell["losses"] = [round(loss, 5) for loss in answers.losses]
        found = f"{answers.accuracy:.1%} right, loss {answers.loss:.3f}, {answers.density:.0%}"
        add(cell_name(label, seed, name), cell, f"{found} of the pairs")


def weights_path(settings: argparse.Namespace, label: str, seed: int) -> Path:
    out: Path = settings.out
    return out / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}.pt"


def run_of(settings: argparse.Namespace, label: str, seed: int) -> Run:
    choice, share = TRAINED[label]
    length = int(share * settings.length)
    return Run(settings.model, choice, length, settings.batch, seed, settings.threads)


def report(cells: dict[str, Any], settings: argparse.Namespace) -> str:
    """The finished tables, as markdown."""
    figures = Figures(cells, list(TRAINED), list(INFERRED), settings.seeds)
    plural = "" if settings.seeds == 1 else "s"
    documents = f"{settings.test} documents and {settings.seeds} seed{plural}"
    errors = (
        "± the standard error over documents, each one's difference being its mean over seeds (in "
        "brackets the one over seeds); * further than 2 standard errors over documents from 0"
    )
    return "\n\n".join(
        (
            f"{settings.model}, {settings.train} documents to train, {settings.length} tokens, "
            f"{settings.threads} threads, torch {torch.__version__}",
            f"Right, %: mean over {documents}, ± the standard error over seeds",
            figures.means("correct", 1),
            f"Difference from `dense` on the same weights, percentage points; {errors}",
            figures.from_same_weights(),
            f"Difference from trained and answered with `dense`, percentage points; {errors}",
            figures.from_dense(),
            "Cross-entropy, nats: mean, ± the standard error over seeds",
            figures.means("losses", 3),
            "Cost: share of the pairs that answers evaluate and the memory of their weights in all "
            "layers and heads for one document, as the paper counts; measured peak of a training "
            f"step of {settings.batch} documents above weights, gradients and optimizer; times on "
            "this machine, for information",
            figures.costs(STEPS, WAYS),
        )
    )


def measure_apart(label: str, arguments: list[str]) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--child", label]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"a step with {label}: {done.stderr.strip() or done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """In the child: the shortest of TIMED_STEPS steps, and their peak of memory above the start.

    At the start there are the weights, their gradients and the optimizer's numbers.
    """
    torch.set_num_threads(settings.threads)
    corpus = read(settings.corpus, settings.train, settings.test)
    eager = settings.child == "eager"
    run = run_of(settings, "dense" if eager else settings.child, 0)
    model, tokenizer = load_classifier(run.model, len(corpus.classes), run.seed, run.length)
    data = encode(tokenizer, corpus.training[: run.batch], run.length)
    if eager:
        model.encoder.set_attn_implementation("eager")
    else:
        attend_by(model, run.choice, data, run.seed)
    optimizer, _ = optimizer_of(model.train(), 1)
    step(model, data, optimizer)  # warms up
    times = []
    with PeakMemory() as memory:
        for _ in range(TIMED_STEPS):
            start = perf_counter()
            step(model, data, optimizer)
            times.append(perf_counter() - start)
    config = model.encoder.config
    heads = config.num_hidden_layers * config.num_attention_heads
    return {
        "seconds": min(times),
        "peak_bytes": memory.above,
        "weights_bytes": 4 * heads * data["input_ids"].shape[1] ** 2,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=Path("classify-table"), help="%(default)s")
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    check(settings)
    return settings


def main(arguments: list[str]) -> None:
    try:
        settings = parse(arguments)
        if settings.child:
            print(json.dumps(measure(settings)))
        else:
            print(report(fill(settings, arguments), settings))
    except Problem as problem:
        sys.exit(f"table.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
