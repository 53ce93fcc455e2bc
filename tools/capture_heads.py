#!/usr/bin/env python3
"""Captures query, key and value of real attention heads and keeps them as test data.

    .venv/bin/python tools/capture_heads.py tests/data/heads.npz

Needs the development set-up (`make test` makes it). tests/data/NOTICE says what the result is.
benchmarks/heads.py captures more heads, and other texts, by the same functions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# Before the import of transformers: what it looks up must not leave this machine.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from transformers.masking_utils import sdpa_mask

from smyrf.compare.inputs import Speech, Text, read_input
from smyrf.compare.models import find_model, load_model
from smyrf.compare.sound import SAMPLE_RATE, Samples


class Head(NamedTuple):
    """One attention head of a model, and which rows of its query and of its key are kept."""

    model: str
    layer: str
    head: int
    queries: slice
    keys: slice


BERT, WHISPER, LLAMA = (
    "encoder.layer.{}.attention.self",
    "model.encoder.layers.{}.self_attn",
    "layers.{}.self_attn",
)
ALL = slice(0, 512)
SPOKEN = slice(0, 1024)  # 20.5 of the 25 seconds; silence fills the window up to 30
EARLIER, LATER = slice(0, 2048), slice(2048, 4096)  # no causal mask between them

# Of each model a head that `lsh` finds easy, or as hard as most, and its hardest.
HEADS = {
    "minilm-4-0": Head("minilm", BERT.format(4), 0, ALL, ALL),
    "minilm-5-6": Head("minilm", BERT.format(5), 6, ALL, ALL),
    "whisper-0-5": Head("whisper", WHISPER.format(0), 5, SPOKEN, SPOKEN),
    "whisper-2-2": Head("whisper", WHISPER.format(2), 2, SPOKEN, SPOKEN),
    "smollm2-7-2": Head("smollm2", LLAMA.format(7), 2, LATER, EARLIER),
    "smollm2-18-8": Head("smollm2", LLAMA.format(18), 8, LATER, EARLIER),
}

Rows = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # layer: (heads, N, D) of q, k, v


@contextmanager
def capturing(model: Any, names: set[str]) -> Iterator[Rows]:
    """Inside the block, attention layers of these names leave their rows in the dict.

    Queries are scaled so that the scale on their logits is 1/sqrt(D).
    """
    layers = {module: name for name, module in model.named_modules() if name in names}
    rows: Rows = {}
    dense = transformers.AttentionInterface()["sdpa"]

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        if module in layers:
            scaling = options.get("scaling")
            factor = 1.0 if scaling is None else scaling * q.shape[-1] ** 0.5
            rows[layers[module]] = (q[0].numpy() * factor, k[0].numpy(), v[0].numpy())
        return dense(module, q, k, v, mask, **options)

    transformers.AttentionInterface.register("capture", attend)
    transformers.AttentionMaskInterface.register("capture", sdpa_mask)
    model.set_attn_implementation("capture")
    with torch.inference_mode():
        yield rows


def tokens(text: str, tokenizer: Any, skip: int, length: int) -> torch.Tensor:
    """Ids (1, length), behind the first `skip`, of a text that `smyrf compare` knows by name."""
    given = read_input(text)
    assert isinstance(given, Text)
    # No model has so many positions; the warning about it is pointless here.
    ids = tokenizer(given.text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([ids[skip : skip + length]])


def recordings(name: str) -> Samples:
    """The recordings of a name or folder, joined."""
    speech = read_input(name)
    assert isinstance(speech, Speech)
    return np.concatenate([utterance.samples for utterance in speech.utterances])


def minilm(names: set[str], text: str = "devil", skip: int = 5100) -> Rows:
    """A document of 512 tokens, between the marks the model was trained with."""
    model = load_model(find_model("minilm"))
    tokenizer = model.tokenizer
    words = tokens(text, tokenizer, skip, length=510)[0].tolist()
    ids = torch.tensor([[tokenizer.cls_token_id, *words, tokenizer.sep_token_id]])
    with capturing(model.module, names) as rows:
        model.module(input_ids=ids, attention_mask=torch.ones_like(ids))
    return rows


def whisper(names: set[str], sound: Samples | None = None) -> Rows:
    """Sound, by default 25 seconds of LibriVox, in one window of 30 seconds: 1500 rows."""
    model = load_model(find_model("whisper"))
    sound = recordings("librivox") if sound is None else sound
    features = model.features(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    with capturing(model.module, names) as rows:
        model.module.model.encoder(features.input_features)
    return rows


def smollm2(names: set[str], text: str = "devil", skip: int = 0, length: int = 4096) -> Rows:
    """The first `length` tokens behind `skip`; 9 heads of queries over 3 of keys."""
    model = load_model(find_model("smollm2"))
    layers = model.module.model  # without the head, whose logits would take gigabytes
    with capturing(layers, names) as rows:
        layers(tokens(text, model.tokenizer, skip, length), use_cache=False)
    return rows


MODELS: dict[str, Callable[[set[str]], Rows]] = {
    "minilm": minilm,
    "whisper": whisper,
    "smollm2": smollm2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Captures real attention heads as test data.")
    parser.add_argument("output", type=Path, help="the .npz file to write")
    output = parser.parse_args().output
    arrays: dict[str, np.ndarray] = {}
    for model, capture in MODELS.items():
        heads = {name: head for name, head in HEADS.items() if head.model == model}
        rows = capture({head.layer for head in heads.values()})
        for name, head in heads.items():
            group = len(rows[head.layer][0]) // len(rows[head.layer][1])
            for what, x, part, index in zip(
                ("query", "key", "value"),
                rows[head.layer],
                (head.queries, head.keys, head.keys),
                (head.head, head.head // group, head.head // group),
                strict=True,
            ):
                kept = x[index, part].astype(np.float16)
                assert len(kept) == part.stop - part.start
                assert np.isfinite(kept).all(), f"{name} {what}: beyond float16"
                arrays[f"{name}/{what}"] = kept
            print(name, *(x.shape for n, x in arrays.items() if n.startswith(name + "/")))
    np.savez_compressed(output, **arrays)  # type: ignore[arg-type]
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
