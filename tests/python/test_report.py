"""Exact: what a comparison says about times, by their length, and how it is drawn."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smyrf.compare import Comparison, Errors, Heads, Row
from smyrf.plot import check_plot, draw
from smyrf.problem import Problem
from smyrf.report import closing, table
from smyrf.switch import TRANSFORMERS


class Task:
    ran = "on text"
    switch = TRANSFORMERS

    def scope(self, layers: int, every: int) -> str:
        return f"{layers} of {every}"

    def verdict(self, figures: object) -> str:
        return "nothing changes"


def comparison(seconds: float) -> Comparison:
    def row(method: str, attention: float, errors: Errors | None = None) -> Row:
        return Row(
            label=method,
            method=method,
            dials={},
            figures=[],
            answer=None,
            pictures=None,
            density=1.0,
            errors=errors,
            gone_dense=None,
            heads={"layer.1": Heads([0.5, math.nan, 0.75], [0.5, 0.5, 0])} if errors else {},
            attention_seconds=attention,
            whole_seconds=50 * seconds,
            peak_bytes=1,
            peak_bytes_above_model=1,
            layers_changed=0,
            layers_unchanged=6,
        )

    error = Errors(0.5, 0.75, "layer.1", 2, None, None)
    rows = [row("sdpa", 2 * seconds), row("dense", seconds), row("lsh", 4 * seconds, error)]
    return Comparison("minilm", "text", 1, ["layer.1"], True, None, rows)


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
