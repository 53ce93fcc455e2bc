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

import numpy as np
import pytest
from rich.console import Console

from smyrf.compare.comparison import Comparison, Errors, Heads, Row
from smyrf.compare.generate import GenerateImages
from smyrf.compare.hearing import SpellSound, Transcribe
from smyrf.compare.models import RANDOM
from smyrf.compare.plot import check_plot, draw
from smyrf.compare.problem import Problem
from smyrf.compare.report import as_json, notes, show, table, verdict
from smyrf.compare.switch import of_transformers
from smyrf.compare.task import Figure, at_least
from smyrf.compare.text import ClassifyText, EncodeText, RankText, ScoreText
from smyrf.compare.vision import EncodeImages


class Task:
    rows = "512 tokens"
    keeps = "a cosine of at least 0.99"
    switch = of_transformers("sdpa")

    def verdict(self, figures: object) -> str:
        return "nothing changes"

    def close(self, figures: Sequence[Figure], dense: object) -> bool:
        return at_least(figures[0], 0.99)


TASK: Any = Task()


def comparison(seconds: float) -> Comparison:
    """dense takes half of the time of sdpa in attention, lsh twice of it; whole runs are equal."""

    def row(method: str, attention: float, errors: Errors | None = None) -> Row:
        return Row(
            label=method,
            method=method,
            dials={},
            figures=[Figure("cosine_mean", ("cosine", "mean"), 0.995, "0.9950")],
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
    return Comparison("minilm", "text", "pretrained weights", 1, ["layer.1"], {}, [], None, rows)


def with_lsh(**changes: Any) -> Comparison:
    """lsh takes half of dense's time, in attention and in all, and gives its answers."""
    given = comparison(1)
    quick = {"attention_seconds": 0.5, "whole_seconds": 25.0}
    return replace(given, rows=[*given.rows[:2], replace(given.rows[2], **{**quick, **changes})])


def said_of(given: Comparison) -> str:
    return " ".join([verdict(given, TASK), *notes(given, TASK)])


@pytest.mark.parametrize(("seconds", "timed"), [(1, True), (0.004, False)])
def test_times_too_short_to_compare_are_not_compared(seconds: float, timed: bool) -> None:
    given = comparison(seconds)
    lines = table(given, 80)
    assert ("2.00 x" in lines[4]) == timed  # dense's attention
    assert ("0.50 x" in lines[5]) == timed
    assert ("too short to time" in verdict(given, TASK)) == (not timed)


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_table_keeps_to_the_width_and_cuts_no_number(width: int) -> None:
    given = with_lsh(label="tree 0.05 cap 0.3")
    lines = table(given, width)
    assert max(map(len, lines)) <= width
    numbers = "0.9950 50 % 4.00 x 1.00 x 50.00 25.00"
    for number in numbers.split():
        assert number in " ".join(lines).split()
    blocks = "\n".join(lines).split("\n\n")
    assert len(blocks) == {50: 2, 80: 1, 200: 1}[width]
    for block in blocks:
        assert [line.split("  ")[0] for line in block.splitlines()[3:]] == [
            "sdpa", "dense", "tree 0.05 cap 0.3"
        ]  # fmt: skip
    console = Console(width=width, record=True, file=io.StringIO())
    show(given, TASK, console)
    shown = console.export_text().splitlines()
    assert max(map(len, shown)) <= width
    first = next(line for line in shown if line.strip())
    assert first.startswith("tree 0.05 cap 0.3 runs minilm")


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


def test_the_verdict_weighs_the_whole_run_and_answers_that_stay() -> None:
    assert verdict(with_lsh(), TASK) == (
        "lsh runs minilm 2.00 times as quickly as exact attention (sdpa) and keeps its answers: "
        "nothing changes."
    )
    slow = verdict(with_lsh(whole_seconds=50.0), TASK)
    assert slow == (
        "minilm gains no time here over its own attention (sdpa); at 512 tokens no approximation "
        "saves time in the whole run."
    )
    assert verdict(with_lsh(attention_seconds=3.0), TASK) == slow  # the rest's gain is noise
    for figure in (0.7, None, math.nan):
        wrong = verdict(with_lsh(figures=[Figure("", ("", ""), figure, "-")]), TASK)
        assert "lsh is quicker still, but gives other answers" in wrong
        assert "keeps" not in wrong
    quick = with_lsh(whole_seconds=50.0)
    quick.rows[1] = replace(quick.rows[1], whole_seconds=40.0)
    assert "dense, which is exact, runs minilm 1.25 times as quickly" in verdict(quick, TASK)


def test_models_without_a_layer_for_the_method_say_so() -> None:
    given = replace(comparison(1), skipped=["tree 0.1"], left={"causal": 6})
    del given.rows[2]
    said = said_of(given)
    assert "none of its layers takes an approximate method" in said
    assert "Of 6 layers 6 causal, which stay dense" in said
    assert "Not run: tree 0.1, since no layer can take it" in said
    assert "error" not in " ".join(table(given, 80))


@pytest.mark.parametrize("same", [{"gone_dense": 1.0}, {"density": 1.0}, {"layers_changed": 0}])
def test_the_same_work_gets_no_verdict(same: dict[str, float]) -> None:
    given = with_lsh(**same)
    assert "It did every pair as dense does" in said_of(given)
    assert "every method did what dense does" in verdict(given, TASK)


@pytest.mark.parametrize(
    ("kind", "said", "values", "dense", "close"),
    [
        (EncodeText, None, (0.999, 0.98), (1, 1), True),
        (EncodeText, None, (0.999, 0.98, 0.95), (1, 1, 1), True),
        (EncodeText, None, (0.999, 0.98, 0.8), (1, 1, 1), False),
        (EncodeText, None, (0.98, 0.98), (1, 1), False),
        (EncodeText, None, (0.999, 0.9), (1, 1), False),
        (EncodeImages, None, (0.999, 0.9, 1), (1, 1, 1), False),
        (EncodeImages, None, (0.999, 0.96, 1), (1, 1, 1), True),
        (ScoreText, None, (20.1, 0.99), (20, 1), True),
        (ScoreText, None, (20.3, 0.99), (20, 1), False),
        (ScoreText, None, (20.1, 0.97), (20, 1), False),
        (ClassifyText, None, (0.04, 0.99), (0, 1), True),
        (ClassifyText, None, (0.06, 0.99), (0, 1), False),
        (RankText, None, (0.04, 0.97), (0, 1), False),
        (Transcribe, None, (0.04,), (0,), True),
        (Transcribe, None, (0.06,), (0,), False),
        (Transcribe, None, (None,), (0,), False),
        (Transcribe, "words", (0.11, 0.04), (0.10, 0), True),
        (SpellSound, "words", (0.13, 0.04), (0.10, 0), False),
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
        return [Figure("", ("", ""), value, "") for value in of]

    assert task.close(figures(values), figures(dense)) is close


def test_figures_are_what_they_say() -> None:
    def values(task: Any, answers: Any, dense: Any) -> list[float | None]:
        return [figure.value for figure in task.judge(answers, dense)]

    rank = RankText.__new__(RankText)
    rank.shape = (1, 3)
    assert values(rank, [0.1, 0.9, 0.5], [0.1, 0.5, 0.9]) == pytest.approx([0.4, 2 / 3])
    classify = ClassifyText.__new__(ClassifyText)
    classify.many = False
    dense = [np.array([0.7, 0.3]), np.array([0.4, 0.6])]
    assert values(classify, [dense[0], dense[0]], dense) == pytest.approx([0.3, 0.5])
    score = ScoreText.__new__(ScoreText)
    ids = np.arange(4)
    got = [(np.full(4, np.log(8.0)), ids), (np.full(4, np.log(2.0)), ids)]
    assert values(score, got, [(0, ids), (0, np.array([0, 1, 2, 4]))]) == pytest.approx([4, 7 / 8])
    encode = EncodeText.__new__(EncodeText)
    encode.passages, encode.queries = 40, 2
    angles = np.arange(42) / 42 * np.pi
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert values(encode, list(rows), list(rows)) == pytest.approx([1, 1, 1])
    turned = [*rows[:40], -rows[40], rows[41]]  # whose nearest are the farthest
    assert values(encode, turned, list(rows)) == pytest.approx([1, 1, 0.5])


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
    assert "quickly" not in verdict(given, TASK)
    assert "not finite" in " ".join(table(given, 100))

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


def test_json_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/smyrf", "compare", "minilm", "a b.txt"])
    content = json.loads(as_json(comparison(1)))
    assert content["command"] == "smyrf compare minilm 'a b.txt'"
    assert set(content["versions"]) == {"smyrf", "python", "numpy", "torch", "transformers"}
    assert content["date"].startswith("20")
    assert content["date"].endswith("+00:00")
    assert content["processor"]
    assert content["instruction_set"]
