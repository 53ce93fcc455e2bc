"""How a comparison is shown: table, answers, a closing paragraph, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smyrf.compare.comparison import Comparison, Errors, Row
from smyrf.compare.models import RANDOM
from smyrf.compare.task import Task

MOST_ANSWER = 700  # characters of an answer on the screen; JSON has all
LEAST_SECONDS = 0.01  # of attention in the base of a ratio; below it a ratio is noise
QUICKER = 0.95  # the largest ratio of times that counts as time saved


def show(comparison: Comparison, task: Task, console: Console) -> None:
    """Prints everything that people read."""
    console.print(f"\n[bold]{escape(comparison.model)}[/] on {escape(comparison.about)}\n")
    console.print(table(comparison))
    answers = [(row.label, row.answer) for row in comparison.rows if row.answer is not None]
    if answers:
        console.print("\n[bold]What was written[/]")
        if comparison.reference is not None:
            answers.insert(0, ("what was said", comparison.reference))
        for label, answer in answers:
            cut = answer if len(answer) <= MOST_ANSWER else answer[:MOST_ANSWER] + " ..."
            console.print(f"[bold]{label}[/]: {escape(cut) or '(nothing)'}")
    console.print(f"\n{escape(closing(comparison, task))}\n")


def table(comparison: Comparison) -> Table:
    """One column a method, one line a thing measured."""
    dense = comparison.dense
    grid = Table(show_edge=False, pad_edge=False)
    grid.add_column("")
    for row in comparison.rows:
        grid.add_column(row.label, justify="right")

    def line(title: str, cell: Callable[[Row], str]) -> None:
        grid.add_row(title, *(cell(row) for row in comparison.rows))

    def ratio(seconds: float | None, base: float | None) -> str:
        if seconds is None or base is None or not is_timeable(dense):
            return "-"
        return f"{seconds / base:.2f}"

    def figure_text(row: Row, index: int) -> str:
        return row.figures[index].text if row.figures else "not finite"

    for index, figure in enumerate(dense.figures):
        line(figure.title, lambda row, i=index: figure_text(row, i))  # type: ignore[misc]
    if comparison.fault is not None:
        line("not finite from", lambda row: short_layer(row.not_finite or "-"))
    line("relative error: median", lambda row: _error(row, lambda e: f"{e.median:.3f}"))
    line("  worst", lambda row: _error(row, lambda e: f"{e.worst:.3f}"))
    line("  which is", lambda row: _error(row, lambda e: _place(e)))
    if any(row.method == "tree" for row in comparison.rows):
        line("error expected: median", lambda row: _expected(row, lambda e: e.expected_median))
        line("  of the worst", lambda row: _expected(row, lambda e: e.expected_worst))
        line("heads gone dense", lambda r: "-" if r.gone_dense is None else _percent(r.gone_dense))
    line("density", lambda row: "-" if row.density is None else f"{row.density:.3f}")
    line("attention time, dense = 1", lambda r: ratio(r.attention_seconds, dense.attention_seconds))
    if comparison.whole_model:
        line("whole time, dense = 1", lambda r: ratio(r.whole_seconds, dense.whole_seconds))
        line("  seconds", _seconds)
    line("memory over model, MB", _memory)
    if comparison.whole_model:
        line("layers changed / unchanged", lambda r: f"{r.layers_changed} / {r.layers_unchanged}")
    return grid


def closing(comparison: Comparison, task: Task) -> str:
    """What the reader saw, in plain words, from the numbers."""
    own, dense = comparison.rows[0], comparison.dense
    count, every = len(comparison.layers), dense.layers_unchanged
    parts = [
        f"What you saw: {comparison.model} ran {task.ran} with {comparison.weights}, without any "
        f"fine-tuning, on {comparison.threads} thread{'s' * (comparison.threads != 1)}."
    ]
    if comparison.weights == RANDOM:
        parts.append(
            "Such weights have learned nothing: the errors and times of trained ones are others."
        )
    if own is not dense and is_timeable(own) and dense.attention_seconds is not None:
        parts.append(
            "smyrf's dense attention takes "
            f"{_times(dense.attention_seconds, own.attention_seconds)} {task.switch.says}."
        )
    approximations = [row for row in comparison.rows[2:] if row.not_finite is None]
    if approximations:
        parts.append(task.scope(count, every))
    for row in approximations:
        parts += _method(row, comparison, task)
    if is_timeable(dense):
        parts += _savings(approximations, comparison, task)
    return " ".join(parts)


def as_json(comparison: Comparison) -> str:
    """All numbers, unrounded, with ratios to dense beside the seconds; null for NaN and infinity.

    Where a figure of a method is null because its output is not finite, `not_finite` names the
    layer.
    """
    content = dataclasses.asdict(comparison)
    dense = comparison.dense
    for row, kept in zip(comparison.rows, content["rows"], strict=True):
        values = {figure.key: figure.value for figure in row.figures}
        kept["figures"] = {figure.key: values.get(figure.key) for figure in dense.figures}
        del kept["pictures"]
        kept["attention_ratio"] = _ratio(row.attention_seconds, dense.attention_seconds)
        kept["whole_ratio"] = _ratio(row.whole_seconds, dense.whole_seconds)
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ratio(seconds: float | None, base: float | None) -> float | None:
    return seconds / base if seconds is not None and base else None


def _error(row: Row, cell: Callable[[Errors], str]) -> str:
    return "-" if row.errors is None else cell(row.errors)


def _expected(row: Row, which: Callable[[Errors], float | None]) -> str:
    expected = None if row.errors is None else which(row.errors)
    return "-" if expected is None else f"{expected:.3f}"


def _what(row: Row) -> str:
    """What the method is, and its dials."""
    dials = " and ".join(f"{name} {value:g}" for name, value in row.dials.items())
    return f"the paper's method, {dials}" if row.method == "lsh" else dials


def _method(row: Row, comparison: Comparison, task: Task) -> list[str]:
    """What one method did and what it cost."""
    assert row.errors is not None
    dense = comparison.dense
    parts = [
        f"{row.label} ({_what(row)}) evaluates {_percent(row.density or 0)} of the pairs: "
        f"{task.verdict(row.figures)}, and a layer's output is off by "
        f"{_percent(row.errors.median)} in the median head and {_percent(row.errors.worst)} in "
        f"the worst ({_place(row.errors)})."
    ]
    if row.errors.expected_worst is not None:
        parts.append(
            f"There its calibration expected {_percent(row.errors.expected_worst)}; "
            f"{_percent(row.gone_dense or 0)} of the heads went dense."
        )
    if _is_dense_again(row):
        parts.append("It did every pair as dense does, so its times say nothing of the method.")
    elif is_timeable(dense):
        whole = f", the whole run {_times(row.whole_seconds, dense.whole_seconds)} dense"
        whole *= comparison.whole_model
        parts.append(
            "Its attention takes "
            f"{_times(row.attention_seconds, dense.attention_seconds)} dense{whole}."
        )
    return parts


def _is_dense_again(row: Row) -> bool:
    """Whether the method left nothing out, so that a difference in time is noise."""
    return row.layers_changed == 0 or row.gone_dense == 1 or (row.density or 0) >= 1


def _savings(rows: Sequence[Row], comparison: Comparison, task: Task) -> list[str]:
    """Which methods saved time against the better of the two exact ones, and at what price.

    It is the time of the whole run that counts, where all of it ran, and the answers at its end.
    """
    rows = [row for row in rows if not _is_dense_again(row)]
    in_attention = [row for row in rows if _is_quicker(row, comparison, "attention_seconds")]
    quicker = in_attention
    if comparison.whole_model:
        quicker = [row for row in in_attention if _is_quicker(row, comparison, "whole_seconds")]
    good = [row for row in quicker if task.close(row.figures, comparison.dense.figures)]
    parts = []
    if good:
        where = "in the whole run" if comparison.whole_model else "in these layers"
        parts.append(
            f"Here {_labels(good)} save{'s' * (len(good) == 1)} time over exact attention {where} "
            f"and keep{'s' * (len(good) == 1)} close to its answers ({task.keeps})."
        )
    if other := [row for row in quicker if row not in good]:
        parts.append(
            f"{_labels(other)} took less time for other answers than dense's (close would be: "
            f"{task.keeps})."
        )
    if part := [row for row in in_attention if row not in quicker]:
        parts.append(f"{_labels(part)} took less time in attention, but not in the whole run.")
    if rows and not quicker:
        parts.append("Here no approximation saves time over exact attention.")
    return parts


def _is_quicker(row: Row, comparison: Comparison, which: str) -> bool:
    exact = min(getattr(base, which) for base in comparison.rows[:2])
    return bool(getattr(row, which) < QUICKER * exact)


def _labels(rows: Sequence[Row]) -> str:
    return " and ".join(row.label for row in rows)


def _place(errors: Errors) -> str:
    return f"{short_layer(errors.worst_layer)}, head {errors.worst_head}"


def short_layer(name: str) -> str:
    """The layer by its number where its name has just one, by its name otherwise."""
    numbers = re.findall(r"\d+", name)
    return f"layer {numbers[0]}" if len(numbers) == 1 else name


def is_timeable(base: Row) -> bool:
    """Whether ratios to its attention time are more than noise."""
    return base.attention_seconds is not None and base.attention_seconds >= LEAST_SECONDS


def _memory(row: Row) -> str:
    above = row.peak_bytes_above_model
    return "-" if above is None else f"{above / 1e6:.0f}"


def _seconds(row: Row) -> str:
    return "-" if row.whole_seconds is None else f"{row.whole_seconds:.2f}"


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "a share without a number"
    return f"{100 * share:.{int(0 < share < 0.0995)}f} %"


def _times(seconds: float | None, base: float | None) -> str:
    """A ratio of times in words, without a verdict inside the noise of a short run."""
    assert seconds is not None
    assert base is not None
    ratio = seconds / base
    return "as long as" if QUICKER < ratio < 1.05 else f"{ratio:.2f} times as long as"
