"""Real and hostile: Whisper out of CTranslate2's format, and files that are damaged."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smyrf.compare.models import EMBEDDED, find_model, load_model
from smyrf.compare.problem import Problem

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from convert_whisper import convert, find_source, load_ctranslate2  # noqa: E402
from ctranslate2_file import read_model_file  # noqa: E402


@pytest.fixture(scope="module")
def whisper_file() -> Path:
    return find_source(EMBEDDED["whisper"].module) / "model.bin"


def test_truncated_model_file(whisper_file: Path, tmp_path: Path) -> None:
    whole = whisper_file.read_bytes()
    size = len(whole)
    cut = tmp_path / "model.bin"
    cuts = [0, 1, 3, 4, 5, 10, 16, 17, 23, 24, 40, 100, 1000, size // 3, size - 1000, size - 1]
    for length in cuts:
        cut.write_bytes(whole[:length])
        with pytest.raises(Problem, match="damaged"):
            read_model_file(cut)
    cut.write_bytes(whole + b"x")
    with pytest.raises(Problem, match="follow the last alias"):
        read_model_file(cut)


def test_flipped_header_bytes(whisper_file: Path, tmp_path: Path) -> None:
    """A flip ends in our sentence, or in a name, number or weight that differs; never in a crash.

    What still reads is refused when the weights get their places, if it matters to the model.
    """
    path = tmp_path / "model.bin"
    shutil.copy(whisper_file, path)
    whole = whisper_file.read_bytes()
    later = whole.index(b"encoder/layer_3/ffn/linear_1/weight\0") - 2
    places = [*range(190), *range(later, later + 60), *range(len(whole) - 60, len(whole))]
    refused = 0
    with path.open("r+b", buffering=0) as file:
        for at in places:
            for flip in (0x01, 0xFF):
                file.seek(at)
                file.write(bytes([whole[at] ^ flip]))
                try:
                    read_model_file(path)
                except Problem:
                    refused += 1
                file.seek(at)
                file.write(whole[at : at + 1])
    assert len(places) < refused < 2 * len(places)
    assert len(read_model_file(path).variables) == 149


def test_damaged_weights_name_the_variable(whisper_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    shutil.copytree(whisper_file.parent, folder)
    data = bytearray((folder / "model.bin").read_bytes())
    at = data.index(b"encoder/conv1/weight\0")
    data[at : at + 7] = b"ENCODER"
    (folder / "model.bin").write_bytes(data)
    with pytest.raises(Problem, match="encoder/conv1/weight is missing"):
        load_ctranslate2(folder)


def test_weights_that_are_not_finite(whisper_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    shutil.copytree(whisper_file.parent, folder)
    data = bytearray((folder / "model.bin").read_bytes())
    name = b"encoder/conv1/bias\0"
    values = data.index(name) + len(name) + 1 + 4 + 1 + 4  # rank, one dimension, type, size
    data[values : values + 2] = b"\x00\x7c"  # infinity in float16
    (folder / "model.bin").write_bytes(data)
    with pytest.raises(Problem, match="encoder/conv1/bias holds values that are not finite"):
        load_ctranslate2(folder)


def test_a_converted_folder_holds_the_same_weights(
    whisper_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "whisper"
    command = [sys.executable, str(ROOT / "tools" / "convert_whisper.py")]
    command += [str(whisper_file.parent), str(target)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in target.parent.iterdir()] == ["whisper"]
    monkeypatch.chdir(tmp_path)
    model = load_model(find_model(str(target)))
    weights = model.module.state_dict()
    first, _, _ = load_ctranslate2(whisper_file.parent)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert model.module.generation_config.suppress_tokens == first.generation_config.suppress_tokens
    with pytest.raises(Problem, match=r"build/whisper is not there; .*convert_whisper\.py"):
        find_model("whisper")
    with pytest.raises(Problem, match="is in CTranslate2's format"):
        find_model(str(whisper_file.parent))


def test_a_target_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(Problem, match="is there already and no model"):
        convert("no_such_package", tmp_path / "other")
    with pytest.raises(Problem, match="no such Python package"):
        convert("no_such_package", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("name", ["whisper", "ctranslate2_file", "checkpoint"])
def test_old_paths_say_where_it_went(name: str) -> None:
    with pytest.raises(ImportError, match=f"smyrf.{name}: is (tools|examples)/"):
        importlib.import_module(f"smyrf.{name}")
