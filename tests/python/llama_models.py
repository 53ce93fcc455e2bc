"""Small models for llama.cpp, as GGUF files with float32 weights: 4-bit ones blur attention."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from smyrf.compare.models import find_model


def write_smollm2(target: Path, layers: int) -> None:
    """SmolLM2's first layers."""
    source = find_model("smollm2")
    assert source.gguf
    reader = gguf.GGUFReader(source.folder / source.gguf)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "general.file_type",
            "general.quantization_version",
        ):
            continue
        value = layers if field.name == "llama.block_count" else field.contents()
        kinds = field.types
        writer.add_key_value(field.name, value, kinds[0], kinds[1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        layer = tensor.name.split(".")[1]
        if tensor.name.startswith("blk.") and int(layer) >= layers:
            continue
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights.astype(np.float32))
    _finish(writer)


def write_minilm(target: Path, layers: int, positions: int) -> None:
    """MiniLM's first layers; more than its 512 positions are interpolated."""
    folder = find_model("minilm").folder
    weights = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_context_length(positions)
    writer.add_embedding_length(384)
    writer.add_feed_forward_length(1536)
    writer.add_block_count(layers)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    words = (folder / "vocab.txt").read_text().splitlines()
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_piece(word) for word in words])
    special = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special[not word.startswith("[")] for word in words])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for name, tensor in weights.items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        stem, _, kind = name.rpartition(".")
        known = names.get_name(stem)
        if known is None:  # of a later layer
            continue
        if known == "position_embd":
            tensor = _stretched(tensor, positions)
        writer.add_tensor(f"{known}.{kind}", tensor.astype(np.float32))
    _finish(writer)


def _piece(word: str) -> str:
    """A word piece as llama.cpp spells it: beginnings of words are marked, and not the rest."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else f"\u2581{word}"


def _stretched(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    if count <= len(rows):
        return rows[:count]
    at = np.linspace(0, len(rows) - 1, count)
    return np.stack([np.interp(at, np.arange(len(rows)), column) for column in rows.T], axis=1)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
