"""Fine-tunes a text encoder for one epoch on a labelled corpus, with attention by smyrf.

    python examples/classify/train.py --method tree --out runs/tree

and says how well it then does on the corpus's test documents. Weights go to OUT/classifier.pt; run
it again, and they are read instead.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import checkpoint
import torch
from classifier import (
    Advance,
    Classifier,
    answer,
    attend_by,
    encode,
    fit,
    fit_by_trainer,
    load_classifier,
)
from corpus import DEFAULT, Corpus, read
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import smyrf.transformers
from smyrf.compare.choice import Choice
from smyrf.compare.problem import Problem

FORMAT = "smyrf/examples/classify 1"  # of the weights' file
METHODS = ("dense", "lsh", "tree")


@dataclass(frozen=True)
class Run:
    """What a training depends on, beside its documents."""

    model: str
    choice: Choice
    length: int  # tokens of a document, at most
    batch: int
    seed: int  # of the head, of the order, of dropout, and of the method
    threads: int
    trainer: bool = False  # transformers', not a plain loop

    def fixed(self, corpus: Corpus) -> dict[str, Any]:
        """As a weights' file keeps it."""
        return {**vars(self), "choice": name_of(self.choice), "corpus": corpus.fingerprint}


@dataclass(frozen=True)
class Trained:
    model: Classifier
    tokenizer: Any
    losses: list[float]  # of each step
    seconds: float  # a step


def name_of(choice: Choice) -> str:
    return choice.label.strip()  # dense has no dials


def trained(run: Run, corpus: Corpus, path: Path, advance: Advance) -> Trained:
    """By the weights in `path`, or trained now and written there.

    The model has PyTorch's own attention afterwards. Raises Problem where the weights were made
    with other settings, where a loss is not finite, or where they can't be written.
    """
    model, tokenizer = load_classifier(run.model, len(corpus.classes), run.seed, run.length)
    fixed = run.fixed(corpus)
    if path.exists():
        state = checkpoint.load(path, FORMAT)
        checkpoint.check_settings(path, state, fixed)
        with checkpoint.contents(path):
            model.load_state_dict(state["model"])
            return Trained(model, tokenizer, state["losses"], float(state["seconds"]))
    data = encode(tokenizer, corpus.training, run.length)
    attend_by(model, run.choice, data, run.seed)
    start = perf_counter()
    losses = (fit_by_trainer if run.trainer else fit)(model, data, run.batch, run.seed, advance)
    seconds = (perf_counter() - start) / len(losses)
    smyrf.transformers.disable(model)
    state = {"model": model.state_dict(), "losses": losses, "seconds": seconds}
    checkpoint.save(path, FORMAT, {"settings": fixed, **state})
    return Trained(model, tokenizer, losses, seconds)


def train(settings: argparse.Namespace) -> str:
    """Trains and tests; what came of it, as a sentence."""
    torch.set_num_threads(settings.threads)
    corpus = read(settings.corpus, settings.train, settings.test)
    dials = {"tolerance": settings.tolerance} if settings.method == "tree" else {}
    density = settings.density if settings.method == "lsh" else None
    run = Run(
        model=settings.model,
        choice=Choice(settings.method, density, dials),
        length=settings.length,
        batch=settings.batch,
        seed=settings.seed,
        threads=settings.threads,
        trainer=settings.trainer,
    )
    path = settings.out / "classifier.pt"
    with checkpoint.writing_to(settings.out), bar() as progress:
        to_train = 0 if path.exists() else len(corpus.training)
        task = progress.add_task("", total=to_train + len(corpus.test))

        def advance(count: int) -> None:
            progress.advance(task, count)

        got = trained(run, corpus, path, advance)
        test = encode(got.tokenizer, corpus.test, run.length)
        attend_by(got.model, run.choice, test, run.seed)
        answers = answer(got.model, test, run.batch, advance)
    return (
        f"{name_of(run.choice)}: {answers.accuracy:.1%} of {len(corpus.test)} test documents in "
        f"{len(corpus.classes)} classes are right, cross-entropy {answers.loss:.3f}, "
        f"{answers.density:.0%} of the pairs evaluated; {got.seconds:.2f} s a step of training, "
        f"{answers.seconds:.3f} s a document of the test"
    )


def bar() -> Progress:
    return Progress(
        TextColumn("document {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        speed_estimate_period=600,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `table.py` has, too."""
    parser.add_argument(
        "corpus", nargs="?", type=Path, default=DEFAULT, help="a folder of classes; %(default)s"
    )
    parser.add_argument("--model", default="minilm", help="or a folder in transformers' format")
    parser.add_argument("--length", type=int, default=512, help="tokens of a document, at most")
    parser.add_argument("--train", type=int, default=600, help="documents")
    parser.add_argument("--test", type=int, default=400, help="documents")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


# libgomp ends the process where the system has no more threads to give.
MOST = {"train": 10**9, "test": 10**9, "batch": 10**6, "threads": 256, "seeds": 1000}


def check(settings: argparse.Namespace) -> None:
    """Raises Problem where a number is out of range."""
    for name, most in MOST.items():
        if not 1 <= getattr(settings, name, 1) <= most:
            raise Problem(f"--{name} {getattr(settings, name)}: must be from 1 to {most}")
    if not 0 <= getattr(settings, "seed", 0) < 2**32:
        raise Problem(f"--seed {settings.seed}: must be from 0 to 2^32 - 1")
    if settings.length < 4:
        raise Problem(f"--length {settings.length}: must be at least 4")
    if not 0 <= getattr(settings, "tolerance", 0) < 1:
        raise Problem(f"--tolerance {settings.tolerance}: must be from 0 to below 1")
    if not 0 < getattr(settings, "density", 0.5) < 1:
        raise Problem(f"--density {settings.density}: must be above 0 and below 1")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--method", choices=METHODS, default="tree")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of tree")
    parser.add_argument("--density", type=float, default=0.5, help="of lsh")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trainer", action="store_true", help="transformers' Trainer, not a loop")
    parser.add_argument("--out", type=Path, default=Path("classify-run"), help="%(default)s")
    settings = parser.parse_args(arguments)
    check(settings)
    return settings


def main(arguments: list[str]) -> None:
    try:
        print(train(parse(arguments)))
    except Problem as problem:
        sys.exit(f"train.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
