"""The main job: one model, one input, dense attention beside each asked method.

Three kinds of pass, so that none disturbs another: one with the model's own attention, which
also shows how long the sequences are; one a method that collects answers, density and errors and
is never timed; then a few timed rounds in which the methods take turns, of which each one's best
counts. Where an output is NaN or infinite, the first two kinds find the layer; what exact attention
can't do nothing is compared with, and a method that can't is not timed.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

import smyrf
from smyrf.compare.choice import Choice
from smyrf.compare.finite import FiniteWatch
from smyrf.compare.measure import PeakMemory, collect_in
from smyrf.compare.models import naming_the_model
from smyrf.compare.problem import Problem
from smyrf.compare.task import Figure, Pictures, Task

ROUNDS = 3


class Progress(Protocol):
    """Told what is being done and how far it is."""

    def start(self, steps: int) -> None: ...

    def doing(self, what: str) -> None: ...

    def advance(self) -> None: ...


@dataclass(frozen=True)
class Errors:
    """Relative error of the changed layers against dense on the same query, key and value.

    `median` is over documents, layers and heads; `worst` is the largest of the (layer, head)
    medians over documents. The expected errors are what `tree`'s calibration said of the same heads
    (None for other methods).
    """

    median: float
    worst: float
    worst_layer: str
    worst_head: int
    expected_median: float | None
    expected_worst: float | None


@dataclass(frozen=True)
class Heads:
    """The heads of one layer: of each the median over documents."""

    error: list[float]
    density: list[float]


@dataclass(frozen=True)
class Row:
    """What one method gave and cost. None: not measured, or it has no meaning for the method.

    `not_finite` is the layer where the output began to be NaN or infinite; such a row has no
    figures, answers or times.
    """

    label: str
    method: str
    dials: dict[str, float]
    figures: list[Figure]
    answer: str | None
    pictures: Pictures | None
    density: float | None
    errors: Errors | None
    gone_dense: float | None  # share of the heads, over documents and layers
    heads: dict[str, Heads]  # by layer; empty for the exact ones
    attention_seconds: float | None
    whole_seconds: float | None
    peak_bytes: int | None
    peak_bytes_above_model: int | None
    layers_changed: int
    layers_unchanged: int
    not_finite: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything the table and the JSON file say. `rows`: own, dense, then the asked methods.

    The rows end with the first of own and dense whose output is not finite.
    """

    model: str
    about: str
    weights: str  # which ones: pretrained, random ...
    threads: int
    layers: list[str]
    whole_model: bool  # whether all of it ran each time, not only its attention
    reference: str | None
    rows: list[Row]

    @property
    def dense(self) -> Row:
        """The base of every ratio; the only row where nothing else ran."""
        return self.rows[min(1, len(self.rows) - 1)]

    @property
    def fault(self) -> str | None:
        """What is not finite and where it begins, in sentences; None if all outputs are."""
        said = []
        for index, row in enumerate(self.rows):
            if row.not_finite is None:
                continue
            cause = (
                "this is the model's own attention, so its weights or the input are at fault",
                "the model's own attention gives finite numbers, so this is a defect of smyrf",
                "exact attention gives finite numbers; take another method or leave out layers",
            )[min(index, 2)]
            said.append(
                f"{row.label}: the output is NaN or infinite, and that begins in layer "
                f"{row.not_finite}; {cause}"
            )
        return "\n".join(said) or None


def compare(
    name: str,
    task: Task,
    choices: Sequence[Choice],
    layers: str | None,
    threads: int,
    progress: Progress,
) -> Comparison:
    """Runs the task with the model's own attention, dense and every choice.

    `layers` is a shell pattern on module names that narrows down which layers take the methods.
    Raises Problem if it matches none, or if smyrf refuses a method or its dials.
    """
    with _enabled(task, "dense", {}, None) as every:
        changed = _changed(task, every, layers)
    task.narrow(changed)
    runs = [_Run(task.switch.own, task.switch.own), _Run("dense", "dense")]
    progress.start((len(runs) + len(choices)) * (task.batches + ROUNDS * task.timed))
    with naming_the_model(name):
        keys = _run_own(task, runs[0], changed, progress)
    for choice in choices:
        runs.append(_Run(choice.label, choice.method, choice.resolve(keys)))
        with _enabled(task, choice.method, runs[-1].dials, changed):
            pass  # what smyrf refuses, it refuses before the long runs

    modules = dict(task.model.named_modules())
    layer_modules = [modules[layer] for layer in changed]
    done = runs[:1]
    for run in runs[1:]:
        if any(exact.not_finite for exact in done[:2]):
            break
        progress.doing(f"{run.label}: answers and errors")
        with (
            _enabled(task, run.method, run.dials, changed),
            collect_in(layer_modules, errors=run.method != "dense") as records,
            FiniteWatch(task.model) as watch,
        ):
            run.answers = task.run(task.batches, progress.advance)
        run.records, run.not_finite = records, watch.begins(run.answers)
        done.append(run)

    finite = [run for run in done if run.not_finite is None]
    if finite[:2] == done[:2]:
        for turn in range(ROUNDS):
            for run in finite:
                progress.doing(f"{run.label}: time, round {turn + 1} of {ROUNDS}")
                _time(task, run, changed, layer_modules, progress)
    rows = [_row(task, run, done, changed, every) for run in done]
    return Comparison(
        name, task.about, task.weights, threads, changed, task.whole_model, task.reference(), rows
    )


@dataclass(eq=False)
class _Run:
    """A column: how it is run, and what has been found so far."""

    label: str
    method: str
    dials: dict[str, float] = field(default_factory=dict)
    answers: list[Any] = field(default_factory=list)
    records: list[smyrf.Record] = field(default_factory=list)
    not_finite: str | None = None
    attention: float | None = None
    whole: float | None = None
    memory: PeakMemory = field(default_factory=PeakMemory)


def _run_own(task: Task, run: _Run, changed: Sequence[str], progress: Progress) -> int:
    """The answers with the model's own attention; returns the most keys in a changed layer."""
    progress.doing(f"{run.label}: answers")
    with task.switch.clock(task.model, run.method) as clock, FiniteWatch(task.model) as watch:
        run.answers = task.run(task.batches, progress.advance)
    run.not_finite = watch.begins(run.answers)
    modules = dict(task.model.named_modules())
    return max(clock.calls[id(modules[layer])].keys for layer in changed)


def _time(
    task: Task,
    run: _Run,
    changed: list[str],
    layer_modules: Sequence[nn.Module],
    progress: Progress,
) -> None:
    """One timed round, whose times count if they are the best; memory is that of the first."""
    first = run.whole is None
    with (
        _enabled(task, run.method, run.dials, changed),
        task.switch.clock(task.model, run.method) as clock,
        run.memory if first else nullcontext(),
    ):
        start = time.perf_counter()
        task.run(task.timed, progress.advance)
        seconds = time.perf_counter() - start
    inside = sum(clock.calls[id(module)].seconds for module in layer_modules)
    run.whole = seconds if run.whole is None else min(run.whole, seconds)
    run.attention = inside if run.attention is None else min(run.attention, inside)


def _row(
    task: Task, run: _Run, runs: Sequence[_Run], changed: list[str], every: Sequence[str]
) -> Row:
    approximate = run not in runs[:2]
    finite = run.not_finite is None
    judged = finite and len(runs) > 1 and runs[1].not_finite is None
    told = task.tell(run.answers) if finite else None
    heads = _by_layer(run.records, changed) if approximate else {}
    count = len(changed) if approximate else 0
    densities = [record.statistics.density for record in run.records]
    gone_dense = [record.statistics.dense_heads for record in run.records]
    return Row(
        label=run.label,
        method=run.method,
        dials=run.dials,
        figures=task.judge(run.answers, runs[1].answers) if judged else [],
        answer=told if isinstance(told, str) else None,
        pictures=told if isinstance(told, np.ndarray) else None,
        density=_mean(densities) if run.records else None,
        errors=_errors(run.records, heads, run.method) if approximate else None,
        gone_dense=_mean(gone_dense) if heads else None,
        heads=heads,
        attention_seconds=run.attention,
        whole_seconds=run.whole,
        peak_bytes=run.memory.peak,
        peak_bytes_above_model=run.memory.above,
        layers_changed=count,
        layers_unchanged=len(every) - count,
        not_finite=run.not_finite,
    )


@contextmanager
def _enabled(
    task: Task, method: str, dials: dict[str, float], changed: list[str] | None
) -> Iterator[list[str]]:
    """The model with a method in the changed layers (None: all); its own leaves it as it is."""
    if method == task.switch.own:
        yield []
        return
    chosen = None if changed is None else (lambda layer, module: layer in changed)
    try:
        names = task.switch.enable(task.model, method=method, layers=chosen, **dials)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise Problem(f"method {method}: {error}") from error
    try:
        yield names
    except NotImplementedError as error:  # what can be known at the call only
        raise Problem(f"method {method}: {error}") from error
    finally:
        task.switch.disable(task.model)


def _changed(task: Task, every: list[str], pattern: str | None) -> list[str]:
    able = [layer for layer in every if task.changeable(layer)]
    chosen = [layer for layer in able if pattern is None or fnmatch.fnmatchcase(layer, pattern)]
    if not chosen:
        raise Problem(
            f"--layers {pattern}: matches none of the layers that can change: {', '.join(able)}"
        )
    return chosen


def _mean(arrays: Iterable[NDArray[Any]]) -> float:
    return float(np.mean([np.mean(array) for array in arrays]))


def _stacked(
    records: Sequence[smyrf.Record], of: Callable[[smyrf.Record], Any]
) -> dict[str, NDArray[np.float64]]:
    """What the records say, (documents, heads) by layer."""
    by_layer: dict[str, list[Any]] = {}
    for record in records:
        by_layer.setdefault(str(record.layer), []).append(of(record))
    return {layer: np.concatenate(arrays) for layer, arrays in by_layer.items()}


def _by_layer(records: Sequence[smyrf.Record], layers: Sequence[str]) -> dict[str, Heads]:
    errors = _stacked(records, lambda record: record.relative_error)
    densities = _stacked(records, lambda record: record.statistics.density)
    return {
        layer: Heads(
            np.median(errors[layer], axis=0).tolist(), np.median(densities[layer], axis=0).tolist()
        )
        for layer in layers
    }


def _errors(records: Sequence[smyrf.Record], heads: dict[str, Heads], method: str) -> Errors:
    places = [(layer, head) for layer, of in heads.items() for head in range(len(of.error))]
    # max() would pass over a NaN, and NaN is worse than any number.
    layer, head = max(
        places, key=lambda place: float(np.nan_to_num(heads[place[0]].error[place[1]], nan=np.inf))
    )
    every = _stacked(records, lambda record: record.relative_error)
    median = float(np.median(np.concatenate([errors.ravel() for errors in every.values()])))
    expected_median = expected_worst = None
    if method == "tree":
        expected = _stacked(records, lambda record: record.statistics.expected_error)
        expected_median = float(np.median(np.concatenate([e.ravel() for e in expected.values()])))
        expected_worst = float(np.median(expected[layer][:, head]))
    worst = heads[layer].error[head]
    return Errors(median, worst, layer, head, expected_median, expected_worst)
