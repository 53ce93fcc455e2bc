"""The main job: one model, one input, dense attention beside each asked method.

Three kinds of pass, so that none disturbs another: one with the model's own attention, which
also shows how long the sequences are; one a method that collects answers, density and errors and
is never timed; then a few timed rounds in which the methods take turns, of which each one's best
counts.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import smyrf
from smyrf.choice import Choice
from smyrf.measure import PeakMemory, collect_in
from smyrf.problem import Problem
from smyrf.task import Figure, Pictures, Task

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
    """What one method gave and cost. None: not measured, or it has no meaning for the method."""

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
    attention_seconds: float
    whole_seconds: float
    peak_bytes: int | None
    peak_bytes_above_model: int | None
    layers_changed: int
    layers_unchanged: int


@dataclass(frozen=True)
class Comparison:
    """Everything the table and the JSON file say. `rows`: own, dense, then the asked methods."""

    model: str
    about: str
    threads: int
    layers: list[str]
    whole_model: bool  # whether all of it ran each time, not only its attention
    reference: str | None
    rows: list[Row]

    @property
    def dense(self) -> Row:
        """The base of every ratio."""
        return next(row for row in self.rows if row.method == "dense")


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
    runs = 1 + len(choices) + 1
    progress.start(runs * (task.batches + ROUNDS * task.timed))

    own = task.switch.own
    progress.doing(f"{own}: answers")
    with task.switch.clock(task.model, own) as clock:
        first = task.run(task.batches, progress.advance)
    modules = dict(task.model.named_modules())
    layer_modules = [modules[layer] for layer in changed]
    keys = max(clock.calls[id(module)].keys for module in layer_modules)
    setups: list[tuple[str, str, dict[str, float]]] = [(own, own, {}), ("dense", "dense", {})]
    setups += [(c.label, c.method, c.resolve(keys)) for c in choices]
    for _, method, dials in setups[2:]:  # what smyrf refuses, it refuses before the long runs
        with _enabled(task, method, dials, changed):
            pass

    collected: list[tuple[list[Any], list[smyrf.Record]]] = [(first, [])]
    for label, method, dials in setups[1:]:
        progress.doing(f"{label}: answers and errors")
        errors = method != "dense"
        with _enabled(task, method, dials, changed), collect_in(layer_modules, errors) as records:
            answers = task.run(task.batches, progress.advance)
        collected.append((answers, records))

    attention = [math.inf] * runs
    whole = [math.inf] * runs
    memory = [PeakMemory() for _ in setups]
    for turn in range(ROUNDS):
        for index, (label, method, dials) in enumerate(setups):
            progress.doing(f"{label}: time, round {turn + 1} of {ROUNDS}")
            with (
                _enabled(task, method, dials, changed),
                task.switch.clock(task.model, method) as clock,
            ):
                if turn == 0:
                    with memory[index]:
                        seconds = _timed(task, progress)
                else:
                    seconds = _timed(task, progress)
            whole[index] = min(whole[index], seconds)
            inside = sum(clock.calls[id(module)].seconds for module in layer_modules)
            attention[index] = min(attention[index], inside)

    dense_answers = collected[1][0]
    rows = []
    for index, (label, method, dials) in enumerate(setups):
        answers, records = collected[index]
        told = task.tell(answers)
        approximate = index >= 2
        heads = _by_layer(records, changed) if approximate else {}
        count = len(changed) if approximate else 0
        rows.append(
            Row(
                label=label,
                method=method,
                dials=dials,
                figures=task.judge(answers, dense_answers),
                answer=told if isinstance(told, str) else None,
                pictures=told if isinstance(told, np.ndarray) else None,
                density=_mean(r.statistics.density for r in records) if records else None,
                errors=_errors(records, heads, method) if approximate else None,
                gone_dense=_mean(r.statistics.dense_heads for r in records) if heads else None,
                heads=heads,
                attention_seconds=attention[index],
                whole_seconds=whole[index],
                peak_bytes=memory[index].peak,
                peak_bytes_above_model=memory[index].above,
                layers_changed=count,
                layers_unchanged=len(every) - count,
            )
        )
    return Comparison(name, task.about, threads, changed, task.whole_model, task.reference(), rows)


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


def _timed(task: Task, progress: Progress) -> float:
    start = time.perf_counter()
    task.run(task.timed, progress.advance)
    return time.perf_counter() - start


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
