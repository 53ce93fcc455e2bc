"""Real: SmolLM2, and how its later tokens attend the earlier ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from smyrf.compare import models
from smyrf.compare.choice import Choice
from smyrf.compare.comparison import compare
from smyrf.compare.inputs import Text, read_input
from smyrf.compare.models import Model, find_model, load_model
from smyrf.compare.problem import Problem
from smyrf.compare.report import closing
from smyrf.compare.squares import AttendOldText
from smyrf.compare.tasks import make_task


class Silent:
    def start(self, steps: int) -> None:
        self.left = steps

    def doing(self, what: str) -> None:
        pass

    def advance(self) -> None:
        self.left -= 1


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return load_model(find_model("smollm2"))


@pytest.fixture(scope="module")
def devil() -> Text:
    text = read_input("devil")
    assert isinstance(text, Text)
    return text


def test_squares_are_what_the_model_computes(smollm2: Model, devil: Text) -> None:
    """The test data were captured apart, from the same model and text."""
    task = make_task(smollm2, devil)
    assert isinstance(task, AttendOldText)
    assert "30 layers the queries (9 heads) of tokens 2048 to 4095" in task.about
    with np.load(Path(__file__).parent.parent / "data" / "heads.npz") as file:
        for layer, head in ((7, 2), (18, 8)):
            square = task.model.layers[layer]
            for what, rows, index in zip(
                ("query", "key", "value"), square.rows, (head, head // 3, head // 3), strict=True
            ):
                kept = file[f"smollm2-{layer}-{head}/{what}"].astype(np.float32)
                got = rows[0, index].numpy()
                assert np.linalg.norm(got - kept) < 1e-3 * np.linalg.norm(kept)
            assert square.scaling == 64**-0.5


def test_compare_on_a_part_of_the_text(smollm2: Model, devil: Text) -> None:
    task = make_task(smollm2, dataclasses.replace(devil, text=devil.text[20_000:24_000]))
    choices = [Choice("tree", dials={"tolerance": 0.1}), Choice("lsh", 0.5)]
    silent = Silent()
    result = compare("smollm2", task, choices, "layers.1?", 1, silent)
    assert silent.left == 0
    assert result.layers == [f"layers.{i}" for i in range(10, 20)]
    rows = {row.method: row for row in result.rows}
    assert [figure.text for figure in rows["sdpa"].figures] == ["1.0000", "1.0000"]
    assert list(rows["tree"].heads) == result.layers
    assert all(len(heads.error) == 9 for heads in rows["tree"].heads.values())
    tree, lsh = rows["tree"].errors, rows["lsh"].errors
    assert tree is not None
    assert lsh is not None
    assert 0.01 < tree.median < 0.125
    assert lsh.median > 0.5  # the clusters miss the sink keys
    assert rows["dense"].attention_seconds > 0
    said = closing(result, task)
    assert "10 of its 30 layers" in said
    assert "4-bit weights" in said
    assert "the whole run" not in said


def test_text_of_one_token(smollm2: Model) -> None:
    with pytest.raises(Problem, match="holds 1 token, expected at least 2"):
        make_task(smollm2, Text("words", "a"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = models.importlib.util.find_spec
    source = find_model("smollm2")
    monkeypatch.setattr(
        models.importlib.util,
        "find_spec",
        lambda name: None if name == package else find_spec(name),
    )
    with pytest.raises(Problem, match=f"{package} is not installed, and model smollm2 needs it"):
        load_model(source)
