"""The program from outside: a real run, and errors in one sentence with exit code 2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import smyrf
from smyrf.cli import app
from smyrf.inputs import SAMPLE_RATE, Text, read_input
from smyrf.tasks import _windows


def run(*arguments: str) -> Result:
    # One thread: what is checked does not depend on it, and pools of threads that wait for each
    # other on a busy machine take minutes.
    return CliRunner().invoke(app, ["compare", *arguments, "--threads", "1"])


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    devil = read_input("devil")
    assert isinstance(devil, Text)
    path = tmp_path_factory.mktemp("text") / "part.txt"
    path.write_text(devil.text[20_000:26_000], "utf-8")
    return path


def test_minilm_on_real_text(two_documents: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = run("minilm", str(two_documents), "--tolerance", ".1", "--density", ".5", "--density",
                 ".25", "--json", str(file), "--plot", str(tmp_path / "plot.png"))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "What you saw" in result.output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(file.read_text())
    assert content["threads"] == 1
    rows = {row["label"]: row for row in content["rows"]}
    assert list(rows) == ["sdpa", "dense", "tree 0.1", "lsh 0.5", "lsh 0.25"]
    assert rows["sdpa"]["figures"]["cosine_worst"] > 0.99999
    assert rows["dense"]["density"] == 1.0
    for label, density in (("lsh 0.5", 0.5), ("lsh 0.25", 0.25)):
        row = rows[label]
        assert row["density"] == pytest.approx(density, rel=0.05)
        assert 0.5 < row["figures"]["cosine_worst"] < 0.999
        assert 0.05 < row["errors"]["median"] < row["errors"]["worst"]
        assert (row["layers_changed"], row["layers_unchanged"]) == (6, 0)
        assert row["attention_seconds"] < row["whole_seconds"]
    tree = rows["tree 0.1"]
    assert tree["dials"] == {"tolerance": 0.1}
    assert tree["figures"]["cosine_worst"] > 0.99
    assert tree["density"] < 0.5
    assert tree["errors"]["expected_median"] <= 0.1
    assert 0.2 * tree["errors"]["expected_median"] < tree["errors"]["median"] < 0.125
    assert 0 <= tree["gone_dense"] < 0.5
    assert [len(heads["error"]) for heads in tree["heads"].values()] == [12] * 6
    worst = tree["heads"][tree["errors"]["worst_layer"]]["error"]
    assert worst[tree["errors"]["worst_head"]] == tree["errors"]["worst"] == max(worst)
    medians = [rows[label]["errors"]["median"] for label in ("lsh 0.5", "lsh 0.25")]
    assert medians[0] < medians[1]


def test_whisper_on_real_speech(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = run("whisper", "librivox", "--n-hashes", "24", "--cluster-size", "32",
                 "--json", str(file))  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["dense"]["figures"]["word_error_rate"] < 0.1
    assert rows["sdpa"]["answer"] == rows["dense"]["answer"]
    assert (rows["lsh"]["layers_changed"], rows["lsh"]["layers_unchanged"]) == (4, 8)
    assert rows["lsh"]["density"] == pytest.approx(0.5, rel=0.1)
    errors = rows["lsh"]["errors"]
    assert errors["worst_layer"].startswith("model.encoder.")
    assert 0.05 < errors["median"] < errors["worst"] < 1


def test_recordings_fill_windows_of_30_seconds() -> None:
    seconds = [10, 15, 10, 65, 5]
    windows = _windows([np.full(s * SAMPLE_RATE, i, np.float32) for i, s in enumerate(seconds)])
    assert [len(w) // SAMPLE_RATE for w in windows] == [25, 10, 30, 30, 10]
    assert [set(w) for w in windows] == [{0, 1}, {2}, {3}, {3}, {3, 4}]


def test_a_failed_run_leaves_no_file(tmp_path: Path) -> None:
    result = run("minilm", "--layers", "nothing.*", "--json", str(tmp_path / "result.json"))
    assert result.exit_code == 2, result.output
    assert list(tmp_path.iterdir()) == []


def test_the_output_must_not_be_the_input(tmp_path: Path) -> None:
    text, link = tmp_path / "text.txt", tmp_path / "link.txt"
    text.write_text("words")
    link.symlink_to(text)
    result = run("minilm", str(text), "--json", str(link))
    assert result.exit_code == 2, result.output
    assert "is the input, too" in result.output
    assert text.read_text() == "words"


def test_layers_narrow_what_changes(two_documents: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ("--density", ".5", "--layers", "encoder.layer.[01].*", "--json", str(file))
    result = run("minilm", str(two_documents), *options)
    assert result.exit_code == 0, result.output
    row = json.loads(file.read_text())["rows"][2]
    assert (row["layers_changed"], row["layers_unchanged"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("minilmm",), "did you mean minilm"),
        (("minilm", "librivox"), "give it text"),
        (("smollm2", "librivox"), "give it text"),
        (("minilm", "no-such-file"), "no such name or file"),
        (("minilm", "--method", "trees"), "unknown"),
        (("minilm", "--tolerance", "1"), "from 0 to below 1"),
        (("minilm", "--density", "2"), "above 0 and below 1"),
        (("minilm", "--json", "/no/such/folder/x.json"), "can't be written"),
        (("minilm", "--plot", "picture.gif"), "expected a name that ends in .png, .svg, .pdf"),
        (("minilm", "--plot", "/no/such/folder/x.svg"), "--plot /no/such/folder/x.svg: can't be"),
        (("minilm", "--plot", "x.svg", "--json", "./x.svg"), "are one file"),
        (("minilm", "--layers", "nothing.*"), "matches none"),
        (("minilm", "--n-hashes", "0", "--cluster-size", "32"), "n_hashes"),
    ],
)
def test_errors_are_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_threads_are_bounded_by_the_machine() -> None:
    result = CliRunner().invoke(app, ["compare", "--threads", "100000"])
    assert result.exit_code == 2, result.output
    assert "expected at most" in " ".join(result.output.split())


def test_it_says_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"smyrf {smyrf.__version__}\n"


def test_debug_shows_the_traceback() -> None:
    result = run("minilmm", "--debug")
    assert result.exception is not None
    assert "minilmm" in str(result.exception)
