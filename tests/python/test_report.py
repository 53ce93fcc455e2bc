"""Exact: what a comparison says about times, by their length, and how it is drawn."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smyrf.compare.comparison import Comparison, Errors, Heads, Row
from smyrf.compare.generate import GenerateImages
from smyrf.compare.models import RANDOM
from smyrf.compare.plot import check_plot, draw
from smyrf.compare.problem import Problem
from smyrf.compare.report import as_json, closing, table
from smyrf.compare.squares import AttendOldText
from smyrf.compare.switch import TRANSFORMERS
from smyrf.compare.task import Figure, at_least
from smyrf.compare.tasks import EncodeText, Transcribe


class Task:
    ran = "on text"
    keeps = "a cosine of at least 0.99"
    switch = TRANSFORMERS

    def scope(self, layers: int, every: int) -> str:
        return f"{layers} of {every}"

    def verdict(self, figures: object) -> str:
        return "nothing changes"

    def close(self, figures: Sequence[Figure], dense: object) -> bool:
        return at_least(figures[0], 0.99)


def comparison(seconds: float) -> Comparison:
    def row(method: str, attention: float, errors: Errors | None = None) -> Row:
        return Row(
            label=method,
            method=method,
            dials={},
            figures=[],
            answer=None,
            pictures=None,
            density=0.5 if errors else 1.0,
            errors=errors,
            gone_dense=None,
            heads={"layer.1": Heads([0.5, math.nan, 0.75], [0.5, 0.5, 0])} if errors else {},
            attention_seconds=attention,
            whole_seconds=50 * seconds,
            peak_bytes=1,
            peak_bytes_above_model=1,
            layers_changed=6 * bool(errors),
            layers_unchanged=6 * (not errors),
        )

    error = Errors(0.5, 0.75, "layer.1", 2, None, None)
    rows = [row("sdpa", 2 * seconds), row("dense", seconds), row("lsh", 4 * seconds, error)]
    return Comparison("minilm", "text", "pretrained weights", 1, ["layer.1"], True, None, rows)


@pytest.mark.parametrize(("seconds", "dense", "lsh"), [(1, True, True), (0.006, True, False),
                                                       (0.004, False, False)])  # fmt: skip
def test_times_too_short_to_compare_are_not_compared(
    seconds: float, dense: bool, lsh: bool
) -> None:
    given = comparison(seconds)
    task: Any = Task()
    said = closing(given, task)
    assert ("attention takes 0.50 times as long as transformers'" in said) == dense
    assert ("attention takes 4.00 times as long as dense" in said) == lsh
    assert ("no approximation saves time" in said) == lsh
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(given))
    times = [line for line in capture.get().splitlines() if "dense = 1" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:]] for line in times]
    nothing = ["-", "-", "-"]
    assert cells == ([["2.00", "1.00", "4.00"], ["1.00"] * 3] if lsh else [nothing, nothing])


@pytest.mark.parametrize(("suffix", "begins"), [(".PNG", b"\x89PNG"), (".svg", b"<?xml"),
                                                (".pdf", b"%PDF")])  # fmt: skip
@pytest.mark.parametrize("seconds", [1, 0.004])
def test_picture(suffix: str, begins: bytes, seconds: float) -> None:
    check_plot(Path(f"x{suffix}"))
    file = io.BytesIO()
    draw(comparison(seconds), file, suffix)
    assert file.getvalue().startswith(begins)
    if suffix == ".svg":
        said = file.getvalue().decode()
        assert ("<!-- too short to time -->" in said) == (seconds < 1)
        assert "<!-- density -->" in said


def test_without_matplotlib_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Problem, match=r"matplotlib.* is not installed, and --plot needs it"):
        check_plot(Path("x.png"))


def with_lsh(whole_model: bool = True, **changes: Any) -> Comparison:
    """lsh takes half of dense's time, in attention and in all, and gives its answers."""
    given = comparison(1)
    cosine = Figure("cosine_mean", "cosine", 0.995, "0.9950")
    rows = [replace(row, figures=[cosine], attention_seconds=1.0) for row in given.rows]
    quick = {"attention_seconds": 0.5, "whole_seconds": 25.0}
    rows[2] = replace(rows[2], **{**quick, **changes})
    return replace(given, rows=rows, whole_model=whole_model)


def said_of(given: Comparison) -> str:
    task: Any = Task()
    return closing(given, task)


def test_saving_is_said_of_the_whole_run_and_of_answers_that_stay() -> None:
    said = said_of(with_lsh())
    assert "Here lsh saves time over exact attention in the whole run and keeps close" in said
    assert "a cosine of at least 0.99" in said
    slow = said_of(with_lsh(whole_seconds=50.0))
    assert "lsh took less time in attention, but not in the whole run." in slow
    assert "Here no approximation saves time" in slow
    assert "in these layers" in said_of(with_lsh(whole_model=False, whole_seconds=50.0))
    wrong = [Figure("cosine_mean", "cosine", 0.7, "0.7000")]
    said = said_of(with_lsh(figures=wrong))
    assert "lsh took less time for other answers than dense's" in said
    assert "saves time" not in said
    unknown = said_of(with_lsh(figures=[Figure("words_changed", "words", None, "-")]))
    assert "saves time" not in unknown


@pytest.mark.parametrize("same", [{"gone_dense": 1.0}, {"density": 1.0}, {"layers_changed": 0}])
def test_the_same_work_gets_no_verdict(same: dict[str, float]) -> None:
    said = said_of(with_lsh(**same))
    assert "It did every pair as dense does, so its times say nothing of the method." in said
    for verdict in ("Its attention takes", "less time", "saves time"):
        assert verdict not in said


@pytest.mark.parametrize(
    ("kind", "said", "values", "dense", "close"),
    [
        (EncodeText, None, (0.999, 0.98), (1, 1), True),
        (EncodeText, None, (0.98, 0.98), (1, 1), False),
        (EncodeText, None, (0.999, 0.9), (1, 1), False),
        (AttendOldText, None, (0.999, 0.9), (1, 1), False),
        (Transcribe, None, (0.04,), (0,), True),
        (Transcribe, None, (0.06,), (0,), False),
        (Transcribe, None, (None,), (0,), False),
        (Transcribe, "words", (0.11, 0.04), (0.10, 0), True),
        (Transcribe, "words", (0.13, 0.04), (0.10, 0), False),
        (Transcribe, "words", (0.10, 0.06), (0.10, 0), False),
        (GenerateImages, None, (0.05, 0.1), (0, 0), True),
        (GenerateImages, None, (0.05, 0.3), (0, 0), False),
        (GenerateImages, None, (math.nan, math.nan), (0, 0), False),
    ],
)
def test_what_counts_as_close(
    kind: Any, said: str | None, values: tuple[float | None, ...], dense: tuple[float, ...],
    close: bool,
) -> None:  # fmt: skip
    task = kind.__new__(kind)
    task.said = said

    def figures(of: Sequence[float | None]) -> list[Figure]:
        return [Figure("", "", value, "") for value in of]

    assert task.close(figures(values), figures(dense)) is close


def test_random_weights_are_not_called_pretrained() -> None:
    said = said_of(replace(comparison(1), weights=RANDOM))
    assert "random weights" in said
    assert "have learned nothing" in said
    assert "pretrained" not in said


@pytest.mark.parametrize("ran", [1, 2, 3])
def test_what_is_not_finite_is_named_and_never_a_number(ran: int) -> None:
    """The model's own attention, dense, or a method: the last row of those that ran."""
    given = with_lsh()
    nan = math.nan
    errors = Errors(nan, math.inf, "layer.1", 2, None, None)
    rows = given.rows[:ran]
    rows[-1] = replace(rows[-1], not_finite="layer.1.query", figures=[], attention_seconds=None,
                       whole_seconds=None, errors=errors if ran == 3 else None)  # fmt: skip
    given = replace(given, rows=rows)
    assert given.fault is not None
    assert "NaN or infinite, and that begins in layer layer.1.query" in given.fault
    assert "saves time" not in said_of(given)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(given))
    assert "not finite from" in capture.get()

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    content = json.loads(as_json(given), parse_constant=refuse)
    assert content["rows"][-1]["not_finite"] == "layer.1.query"
    assert content["rows"][-1]["attention_ratio"] is None
    assert set(content["rows"][-1]["figures"].values()) <= {None}
    if ran == 3:
        assert content["rows"][1]["attention_seconds"] == 1
        assert content["rows"][2]["errors"]["median"] is None
        draw(given, io.BytesIO(), ".png")
