"""The main job: one model, one input, dense attention beside each asked method.

Four kinds of pass, so that none disturbs another: one batch by the model's own attention and one by
dense, which shows which layers can take a method; then all of them by each method, some with errors
collected and none timed; then a few timed rounds in which the methods take turns, of which each
one's best counts. Where an output is NaN or infinite, the layer is found; what exact attention
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
from smyrf.compare.measure import Masks, PeakMemory, collect_in, watch_masks
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
    layers: list[str]  # those whose attention is timed: all that some method took
    left: dict[str, int]  # why layers can't take any method, and how many can't
    skipped: list[str]  # methods that were asked for and can take no layer
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


@dataclass(frozen=True)
class Settings:
    """How a comparison is run. `layers` is a shell pattern on module names that narrows down which
    layers take the methods."""

    layers: str | None
    threads: int
    rounds: int = ROUNDS


def compare(
    name: str, task: Task, choices: Sequence[Choice], settings: Settings, progress: Progress
) -> Comparison:
    """Runs the task with the model's own attention, dense and every choice.

    Raises Problem if no layer matches, or if smyrf refuses a method or its dials.
    """
    progress.doing("looking at the layers")
    with naming_the_model(name):
        task.run(range(1), progress.advance)
    with _enabled(task, "dense", {}, None) as every, watch_masks() as seen:
        task.run(range(1), progress.advance)
    able = _able(task, [layer for layer in every if layer in seen], settings.layers)
    runs, skipped = _choose(task, choices, able, seen)
    progress.start(2 + len(runs) * (task.batches + settings.rounds * task.timed))
    changed = [layer for layer in able if any(layer in run.layers for run in runs)] or able
    modules = dict(task.model.named_modules())
    timed = [modules[layer] for layer in changed]
    done: list[_Run] = []
    for run in runs:
        if any(exact.not_finite for exact in done[:2]):
            break
        _answer(task, run, [modules[layer] for layer in run.layers or changed], progress)
        done.append(run)

    finite = [run for run in done if run.not_finite is None]
    if finite[:2] == done[:2]:
        for turn in range(settings.rounds):
            for run in finite:
                progress.doing(f"{run.label}: time, round {turn + 1} of {settings.rounds}")
                _time(task, run, timed, progress)
    rows = [_row(task, run, done, every) for run in done]
    left: dict[str, int] = {}
    for layer in able:
        if layer not in changed or not runs[2:]:
            left[seen[layer].says] = left.get(seen[layer].says, 0) + 1
    about, weights = task.about, task.weights
    return Comparison(
        name, about, weights, settings.threads, changed, left, skipped, task.reference(), rows
    )


def _able(task: Task, ran: list[str], pattern: str | None) -> list[str]:
    """The layers that run and may take a method, whatever their masks."""
    able = [layer for layer in ran if task.changeable(layer)]
    chosen = [layer for layer in able if pattern is None or fnmatch.fnmatchcase(layer, pattern)]
    if not chosen and pattern is not None:
        raise Problem(
            f"--layers {pattern}: matches none of the layers that can change: {', '.join(able)}"
        )
    if not chosen:
        raise Problem("none of the model's layers calls attention on this input")
    return chosen


def _choose(
    task: Task, choices: Sequence[Choice], able: list[str], seen: dict[str, Masks]
) -> tuple[list[_Run], list[str]]:
    """Own, dense and the choices that can take a layer; and the labels of those that can't.

    What smyrf refuses, it refuses here, before the long runs.
    """
    runs = [_Run(task.switch.own, task.switch.own), _Run("dense", "dense")]
    skipped = []
    for choice in choices:
        layers = [layer for layer in able if not seen[layer].refused(choice.method)]
        if not layers:
            skipped.append(choice.label)
            continue
        dials = choice.resolve(max(seen[layer].keys for layer in layers))
        with _enabled(task, choice.method, dials, layers):
            pass
        runs.append(_Run(choice.label, choice.method, dials, layers))
    return runs, skipped


@dataclass(eq=False)
class _Run:
    """A row: how it is run, and what has been found so far."""

    label: str
    method: str
    dials: dict[str, float] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)  # that take the method; none if it is exact
    answers: list[Any] = field(default_factory=list)
    records: list[smyrf.Record] = field(default_factory=list)
    not_finite: str | None = None
    attention: float | None = None
    whole: float | None = None
    memory: PeakMemory = field(default_factory=PeakMemory)


def _answer(task: Task, run: _Run, modules: Sequence[nn.Module], progress: Progress) -> None:
    """All answers, and of the first batches what each call did."""
    progress.doing(f"{run.label}: answers and errors" if run.layers else f"{run.label}: answers")
    exact = not run.layers
    # The model's own attention is no call of smyrf's, so that it leaves no records.
    with (
        _enabled(task, run.method, run.dials, None if exact else run.layers),
        FiniteWatch(task.model) as watch,
    ):
        with collect_in(modules, errors=not exact) as records:
            run.answers = task.run(range(task.observed), progress.advance)
        run.answers += task.run(range(task.observed, task.batches), progress.advance)
    run.records, run.not_finite = records, watch.begins(run.answers)


def _time(task: Task, run: _Run, modules: Sequence[nn.Module], progress: Progress) -> None:
    """One timed round, whose times count if they are the best; memory is that of the first."""
    first = run.whole is None
    with (
        _enabled(task, run.method, run.dials, run.layers or None),
        task.switch.clock(task.model, run.method) as clock,
        run.memory if first else nullcontext(),
    ):
        start = time.perf_counter()
        task.run(range(task.timed), progress.advance)
        seconds = time.perf_counter() - start
    run.whole = seconds if run.whole is None else min(run.whole, seconds)
    # Nothing where transformers' own function can't be timed.
    if inside := sum(clock.calls[id(module)].seconds for module in modules):
        run.attention = inside if run.attention is None else min(run.attention, inside)


def _row(task: Task, run: _Run, runs: Sequence[_Run], every: Sequence[str]) -> Row:
    approximate = bool(run.layers)
    finite = run.not_finite is None
    judged = finite and len(runs) > 1 and runs[1].not_finite is None
    told = task.tell(run.answers) if finite else None
    heads = _by_layer(run.records) if approximate else {}
    # Those where the method chose to do what it may.
    taken = {r.layer for r in run.records if r.statistics.method != "dense"} & set(run.layers)
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
        errors=_errors(run.records, heads) if heads else None,
        gone_dense=_mean(gone_dense) if heads else None,
        heads=heads,
        attention_seconds=run.attention,
        whole_seconds=run.whole,
        peak_bytes=run.memory.peak,
        peak_bytes_above_model=run.memory.above,
        layers_changed=len(taken),
        layers_unchanged=len(every) - len(taken),
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


def _by_layer(records: Sequence[smyrf.Record]) -> dict[str, Heads]:
    errors = _stacked(records, lambda record: record.relative_error)
    densities = _stacked(records, lambda record: record.statistics.density)
    return {
        layer: Heads(
            np.median(errors[layer], axis=0).tolist(), np.median(densities[layer], axis=0).tolist()
        )
        for layer in errors
    }


def _errors(records: Sequence[smyrf.Record], heads: dict[str, Heads]) -> Errors:
    places = [(layer, head) for layer, of in heads.items() for head in range(len(of.error))]
    # max() would pass over a NaN, and NaN is worse than any number.
    layer, head = max(
        places, key=lambda place: float(np.nan_to_num(heads[place[0]].error[place[1]], nan=np.inf))
    )
    every = _stacked(records, lambda record: record.relative_error)
    median = float(np.median(np.concatenate([errors.ravel() for errors in every.values()])))
    expected_median = expected_worst = None
    trees = [record for record in records if record.statistics.method == "tree"]
    if trees:
        expected = _stacked(trees, lambda record: record.statistics.expected_error)
        expected_median = float(np.median(np.concatenate([e.ravel() for e in expected.values()])))
        if layer in expected:
            expected_worst = float(np.median(expected[layer][:, head]))
    worst = heads[layer].error[head]
    return Errors(median, worst, layer, head, expected_median, expected_worst)
