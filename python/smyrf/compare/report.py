"""How a comparison is shown: the verdict, a table, notes, answers; and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from smyrf.compare.about import circumstances
from smyrf.compare.comparison import Comparison, Errors, Row
from smyrf.compare.models import RANDOM
from smyrf.compare.task import Task

MOST_ANSWER = 700  # characters of an answer on the screen; JSON has all
LEAST_SECONDS = 0.01  # of attention in the base of a ratio; below it a ratio is noise
QUICKER = 0.95  # the largest ratio of times that counts as time saved
GAP = 2  # letters between columns


def show(comparison: Comparison, task: Task, console: Console) -> None:
    """Prints everything that people read."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=False)

    say(f"\n{verdict(comparison, task)}\n", "bold")
    say(f"{comparison.model} on {comparison.about}\n")
    for line in table(comparison, console.width):
        console.print(Text(line), no_wrap=True, overflow="ignore", crop=False)
    say("")
    for note in notes(comparison, task):
        say(note)
    answers = [(row.label, row.answer) for row in comparison.rows if row.answer is not None]
    if answers:
        say("\nWhat was written", "bold")
        if comparison.reference is not None:
            answers.insert(0, ("what was said", comparison.reference))
        for label, answer in answers:
            cut = answer if len(answer) <= MOST_ANSWER else answer[:MOST_ANSWER] + " ..."
            say(f"{label}: {cut or '(nothing)'}")
    say("")


def verdict(comparison: Comparison, task: Task) -> str:
    """One sentence: what is quickest without another result, by the time of the whole run."""
    if comparison.fault is not None and len(comparison.rows) < 3:
        return f"{comparison.model}: the output is NaN or infinite; nothing is compared."
    own, dense = comparison.rows[0], comparison.dense
    rows = [r for r in comparison.rows[2:] if r.not_finite is None and not _is_dense_again(r)]
    exact = min((own, dense), key=lambda row: row.whole_seconds or math.inf)
    if not is_timeable(exact):
        return f"{comparison.model}: too short to time here; give a longer input."
    quicker = sorted(
        (row for row in rows if _is_quicker(row, exact)), key=lambda row: _ratio_to(row, exact)
    )
    good = [row for row in quicker if task.close(row.figures, dense.figures)]
    if good:
        best = good[0]
        return (
            f"{best.label} runs {comparison.model} {1 / _ratio_to(best, exact):.2f} times as "
            f"quickly as exact attention ({exact.label}) and keeps its answers: "
            f"{task.verdict(best.figures)}."
        )
    if _is_quicker(dense, own):
        start = (
            f"dense, which is exact, runs {comparison.model} {1 / _ratio_to(dense, own):.2f} times "
            f"as quickly as its own attention ({own.label})"
        )
    else:
        start = f"{comparison.model} gains no time here over its own attention ({own.label})"
    if quicker:
        return (
            f"{start}; {quicker[0].label} is quicker still, but gives other answers: "
            f"{task.verdict(quicker[0].figures)}."
        )
    if rows:
        return f"{start}; at {task.rows} no approximation saves time in the whole run."
    if comparison.skipped or not comparison.rows[2:]:
        return f"{start}; none of its layers takes an approximate method."
    return f"{start}; every method did what dense does."


Column = tuple[tuple[str, str], list[str]]  # two lines of heading, and a cell a row


def table(comparison: Comparison, width: int) -> list[str]:
    """Lines of a row a method and a column a thing measured.

    Columns that don't fit into the width follow below, behind the methods' names again.
    """
    rows = comparison.rows
    columns = _columns(comparison)
    labels: Column = (("", "method"), [row.label for row in rows])
    lines: list[str] = []
    while columns:
        block, space = [labels], width - _width(labels)
        while columns and (len(block) == 1 or _width(columns[0]) + GAP <= space):
            space -= _width(columns[0]) + GAP
            block.append(columns.pop(0))
        lines += [""] * bool(lines) + _lines(block)
    return lines


def _columns(comparison: Comparison) -> list[Column]:
    rows, own, dense = comparison.rows, comparison.rows[0], comparison.dense

    def column(first: str, second: str, cell: Callable[[Row], str]) -> Column:
        return (first, second), [cell(row) for row in rows]

    columns = [
        column(*figure.title, lambda row, i=index: row.figures[i].text if row.figures else "-")  # type: ignore[misc]
        for index, figure in enumerate(dense.figures)
    ]
    if comparison.fault is not None:
        columns.append(column("not finite", "from", lambda r: short_layer(r.not_finite or "-")))
    if rows[2:]:
        columns.append(
            column(
                "error", "median", lambda r: "-" if r.errors is None else _share(r.errors.median)
            )
        )
        columns.append(
            column("", "pairs", lambda row: "-" if row.density is None else _share(row.density))
        )

    def speed(seconds: float | None, base: float | None) -> str:
        return "-" if not seconds or not base or not is_timeable(own) else f"{base / seconds:.2f} x"

    columns.append(
        column("attention", "speed", lambda r: speed(r.attention_seconds, own.attention_seconds))
    )
    columns.append(column("whole", "speed", lambda r: speed(r.whole_seconds, own.whole_seconds)))
    columns.append(
        column(
            "whole",
            "seconds",
            lambda r: "-" if r.whole_seconds is None else f"{r.whole_seconds:.2f}",
        )
    )
    return columns


def _width(column: Column) -> int:
    return max(map(len, (*column[0], *column[1])))


def _lines(block: Sequence[Column]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        widths = [_width(column) for column in block]
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return (" " * GAP).join(padded).rstrip()

    heading = [line([column[0][i] for column in block]) for i in (0, 1)]
    rule = "─" * (sum(map(_width, block)) + GAP * (len(block) - 1))
    return [*heading, rule, *(line(cells) for cells in zip(*(c[1] for c in block), strict=True))]


def notes(comparison: Comparison, task: Task) -> list[str]:
    """What the table can't say, a sentence a line."""
    own, dense = comparison.rows[0], comparison.dense
    rows = [row for row in comparison.rows[2:] if row.not_finite is None]
    threads = f"{comparison.threads} thread{'s' * (comparison.threads != 1)}"
    said = [f"Run with {comparison.weights}, without fine-tuning, on {threads}."]
    if comparison.weights == RANDOM:
        said.append(
            "Such weights have learned nothing: errors and times of trained ones are others."
        )
    said.append(f"Speed: times as quick as {own.label}, {task.switch.says}.")
    if own.attention_seconds is None:
        said.append(f"The time inside {own.label} can't be taken apart from the rest.")
    every = dense.layers_unchanged
    if comparison.left:
        why = " and ".join(f"{count} {says}" for says, count in comparison.left.items() if says)
        said.append(f"Of {every} layers {why}, which stay dense: no method here takes such layers.")
    if comparison.skipped:
        said.append(
            f"Not run: {' and '.join(comparison.skipped)}, since no layer can take it. tree and "
            "lsh take no causal or windowed attention in this release."
        )
    if rows:
        said.append(
            "Error: of a layer's output, in the median head. Pairs: the share of query-key pairs "
            "that are evaluated."
        )
    for row in rows:
        changed = f"{row.label} changes {row.layers_changed} of {every} layers"
        worst = ""
        if row.errors is not None:
            worst = f"; the worst head is off by {_share(row.errors.worst)} ({_place(row.errors)}"
            expected = row.errors.expected_worst
            worst += ")" if expected is None else f", expected {_share(expected)})"
        gone = f"; {_share(row.gone_dense)} of the heads went dense" if row.gone_dense else ""
        same = ". It did every pair as dense does" * _is_dense_again(row)
        said.append(f"{changed}{worst}{gone}{same}.")
    if rows:
        said.append(f"Answers count as kept with {task.keeps}.")
    return said


def as_json(comparison: Comparison) -> str:
    """All numbers, unrounded, with ratios to dense beside the seconds; null for NaN and infinity.

    Where a figure of a method is null because its output is not finite, `not_finite` names the
    layer.
    """
    content = {**circumstances(), **dataclasses.asdict(comparison)}
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


def _ratio_to(row: Row, base: Row) -> float:
    """Of the whole runs' times; 1 where one is not known."""
    found = _ratio(row.whole_seconds, base.whole_seconds)
    return 1.0 if found is None else found


def _is_quicker(row: Row, base: Row) -> bool:
    """Whether the whole run takes less time, and attention too where that is known: the rest does
    the same work each time, so that its gain is noise."""
    attention = _ratio(row.attention_seconds, base.attention_seconds)
    return _ratio_to(row, base) < QUICKER and (attention is None or attention < 1)


def _is_dense_again(row: Row) -> bool:
    """Whether the method left nothing out, so that a difference in time is noise."""
    return row.layers_changed == 0 or row.gone_dense == 1 or (row.density or 0) >= 1


def _place(errors: Errors) -> str:
    return f"{short_layer(errors.worst_layer)}, head {errors.worst_head}"


def short_layer(name: str) -> str:
    """The layer by its number where its name has just one, by its name otherwise."""
    numbers = re.findall(r"\d+", name)
    return f"layer {numbers[0]}" if len(numbers) == 1 else name


def is_timeable(base: Row) -> bool:
    """Whether ratios to its times are more than noise."""
    seconds = base.whole_seconds if base.attention_seconds is None else base.attention_seconds
    return seconds is not None and seconds >= LEAST_SECONDS


def _share(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "no number"
    return f"{100 * share:.{int(0 < share < 0.0995)}f} %"
