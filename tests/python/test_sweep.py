"""A selection of tools/sweep_transformers.py: models of ten kinds; and what it takes for wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from sweep import check, table  # noqa: E402

NEVER = check.Result(check.REFUSES)


@pytest.fixture(autouse=True, scope="module")
def count() -> Iterator[None]:
    threads, function = torch.get_num_threads(), transformers.AttentionInterface()["smyrf"]
    torch.set_num_threads(1)
    check.count_calls()
    yield
    transformers.AttentionInterface.register("smyrf", function)
    torch.set_num_threads(threads)


# Encoder, decoder, both; vision, speech, text beside images; layers of several kinds.
@pytest.mark.parametrize(
    "model_type", ["bert", "qwen3", "bart", "vit", "wav2vec2", "clip", "mixtral", "modernbert"]
)
def test_works_with_every_padding(model_type: str) -> None:
    row = check.check(model_type)
    assert (row.verdict, row.why) == (check.WORKS, "")
    assert row.calls
    paddings = {"vit": ["none"], "wav2vec2": ["none", "right"]}
    assert list(row.results) == paddings.get(model_type, ["none", "right", "left"])


# is_causal worked out of there being no mask; no mask and layers that say is_causal, but no sdpa.
@pytest.mark.parametrize("model_type", ["moonshine", "bridgetower"])
def test_layers_with_ways_of_their_own(model_type: str) -> None:
    row = check.check(model_type)
    assert (row.verdict, row.why) == (check.WORKS, "")


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "deberta-v2"])
def test_own_attention_is_not_switched_on(model_type: str) -> None:
    row = check.check(model_type)
    for ways in row.results.values():
        assert ways["dense"].verdict == check.REFUSES
        assert "no module that calls transformers' attention interface" in ways["dense"].why


def run_of(values: torch.Tensor) -> check.Run:
    return check.Run({"": values}, gradients={"weight": values})


def test_deviations_count_in_spreads() -> None:
    want = torch.linspace(-100, 100, 50)
    got = want + torch.eye(50)[3] * want.std() * 0.25
    far = check.difference(run_of(got), run_of(want), {""})
    assert far == pytest.approx(0.25, rel=1e-3)
    assert check.difference(run_of(want), run_of(want), {""}) == 0
    nan = want.clone()
    nan[2] = float("nan")
    assert check.difference(run_of(nan), run_of(want), {""}) == float("inf")


def test_the_worst_part_is_the_verdict() -> None:
    row = check.Row("name", results={"none": {}, "right": {}})
    row.results["none"]["loaded"] = check.Result(check.WORKS, 1e-6, calls=2)
    row.results["none"]["tree"] = NEVER
    check.summarise(row)
    assert (row.verdict, row.calls) == (check.WORKS, 2)
    row.results["none"]["dense"] = check.Result(check.FORWARD, why="no backward")
    check.summarise(row)
    assert (row.verdict, row.why) == (check.FORWARD, "no backward")
    row.results["right"]["dense"] = NEVER
    check.summarise(row)
    assert row.verdict == check.REFUSES
    row.results["right"]["loaded"] = check.Result(check.WRONG, 3.0)
    check.summarise(row)
    assert row.verdict == check.WRONG
    assert "3 deviations (loaded right)" in row.why


def test_markdown_holds_every_row() -> None:
    rows: list[dict[str, Any]] = [
        check.Row("one", "OneModel", check.WORKS, calls=2).as_dict(),
        check.Row("two", "TwoModel", check.WRONG, "off by 2").as_dict(),
        {"model_type": "three", "verdict": check.UNBUILT, "results": {}, "why": "a | b"},
    ]
    text = table.markdown(rows)
    assert "| one | OneModel |" in text
    assert "## Silently wrong" in text
    assert "| three |  | a \\| b |" in text
