"""How a comparison is shown: table, answers, a closing paragraph, and JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smyrf.compare import Comparison, Errors, Row
from smyrf.task import Task

MOST_ANSWER = 700  # characters of an answer on the screen; JSON has all
LEAST_SECONDS = 0.01  # of attention in the base of a ratio; below it a ratio is noise


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

    def ratio(seconds: float, base: float) -> str:
        return f"{seconds / base:.2f}" if is_timeable(dense) else "-"

    for index, figure in enumerate(dense.figures):
        line(figure.title, lambda row, i=index: row.figures[i].text)  # type: ignore[misc]
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
        line("  seconds", lambda row: f"{row.whole_seconds:.2f}")
    line("memory over model, MB", _memory)
    if comparison.whole_model:
        line("layers changed / unchanged", lambda r: f"{r.layers_changed} / {r.layers_unchanged}")
    return grid


def closing(comparison: Comparison, task: Task) -> str:
    """What the reader saw, in plain words, from the numbers."""
    own, dense = comparison.rows[0], comparison.dense
    count, every = len(comparison.layers), dense.layers_unchanged
    parts = [
        f"What you saw: {comparison.model} ran {task.ran}, without any fine-tuning, "
        f"on {comparison.threads} thread{'s' * (comparison.threads != 1)}."
    ]
    if is_timeable(own):
        parts.append(
            "smyrf's dense attention takes "
            f"{_times(dense.attention_seconds, own.attention_seconds)} {task.switch.says}."
        )
    parts.append(task.scope(count, every))
    for row in comparison.rows[2:]:
        assert row.errors is not None
        parts.append(
            f"{row.label} ({_what(row)}) evaluates {_percent(row.density or 0)} of the pairs: "
            f"{task.verdict(row.figures)}, and a layer's output is off by "
            f"{_percent(row.errors.median)} in the median head and {_percent(row.errors.worst)} in "
            f"the worst ({_place(row.errors)})."
        )
        if row.errors.expected_worst is not None:
            parts.append(
                f"There its calibration expected {_percent(row.errors.expected_worst)}; "
                f"{_percent(row.gone_dense or 0)} of the heads went dense."
            )
        if is_timeable(dense):
            whole = f", the whole run {_times(row.whole_seconds, dense.whole_seconds)} dense"
            whole *= comparison.whole_model
            parts.append(
                "Its attention takes "
                f"{_times(row.attention_seconds, dense.attention_seconds)} dense{whole}."
            )
    if is_timeable(dense):
        parts.append(_slower(comparison))
    return " ".join(parts)


def as_json(comparison: Comparison) -> str:
    """All numbers, unrounded, with ratios to dense beside the seconds."""
    content = dataclasses.asdict(comparison)
    dense = comparison.dense
    for row, kept in zip(comparison.rows, content["rows"], strict=True):
        kept["figures"] = {figure.key: figure.value for figure in row.figures}
        del kept["pictures"]
        kept["attention_ratio"] = row.attention_seconds / dense.attention_seconds
        kept["whole_ratio"] = row.whole_seconds / dense.whole_seconds
    return json.dumps(content, indent=2) + "\n"


def _error(row: Row, cell: Callable[[Errors], str]) -> str:
    return "-" if row.errors is None else cell(row.errors)


def _expected(row: Row, which: Callable[[Errors], float | None]) -> str:
    expected = None if row.errors is None else which(row.errors)
    return "-" if expected is None else f"{expected:.3f}"


def _what(row: Row) -> str:
    """What the method is, and its dials."""
    dials = " and ".join(f"{name} {value:g}" for name, value in row.dials.items())
    return f"the paper's method, {dials}" if row.method == "lsh" else dials


def _slower(comparison: Comparison) -> str:
    """Which of the asked methods saved time against the better of the two exact ones."""
    exact = min(row.attention_seconds for row in comparison.rows[:2])
    quicker = [r.label for r in comparison.rows[2:] if r.attention_seconds < 0.95 * exact]
    if not quicker:
        return "Here no approximation saves time over exact attention."
    return (
        f"Here {' and '.join(quicker)} save{'s' * (len(quicker) == 1)} time over exact attention."
    )


def _place(errors: Errors) -> str:
    return f"{short_layer(errors.worst_layer)}, head {errors.worst_head}"


def short_layer(name: str) -> str:
    """The layer by its number where its name has just one, by its name otherwise."""
    numbers = re.findall(r"\d+", name)
    return f"layer {numbers[0]}" if len(numbers) == 1 else name


def is_timeable(base: Row) -> bool:
    """Whether ratios to its attention time are more than noise."""
    return base.attention_seconds >= LEAST_SECONDS


def _memory(row: Row) -> str:
    above = row.peak_bytes_above_model
    return "-" if above is None else f"{above / 1e6:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.{int(0 < share < 0.0995)}f} %"


def _times(seconds: float, base: float) -> str:
    """A ratio of times in words, without a verdict inside the noise of a short run."""
    ratio = seconds / base
    return "as long as" if 0.95 < ratio < 1.05 else f"{ratio:.2f} times as long as"
