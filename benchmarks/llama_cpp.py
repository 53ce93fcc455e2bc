"""Prompt tokens a second of stock llama.cpp (wheel of xllamacpp), without the plug-in and with it.

SmolLM2 with its 4-bit weights reads the beginning of The Devil's Dictionary, whole model, each
column in a process of its own; the best of --repeats.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import os
import subprocess
import sys
from typing import Any

import smyrf.ggml
from smyrf.compare.debian import file_of
from smyrf.compare.models import find_model

COLUMNS = {
    "ggml, flash attention off": {},
    "ggml, flash attention on": {},
    "dense": {"SMYRF_METHOD": "dense"},
    "default": {},
    "tolerance .1": {"SMYRF_TOLERANCE": "0.1"},
}
CHARACTERS = 4  # a token, nearly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8000], help="about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ubatch", type=int, default=2048, help="tokens in a chunk")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--column", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.column:
        print(json.dumps([read(options.column, options, tokens) for tokens in options.tokens]))
        return
    fastest: dict[str, list[tuple[int, float]]] = {}
    for column, environment in COLUMNS.items():
        runs = [run(column, environment) for _ in range(options.repeats)]
        fastest[column] = [tuple(max(at, key=lambda x: x[1])) for at in zip(*runs, strict=True)]
    base = fastest["ggml, flash attention on"]
    print(f"{'':26}" + "".join(f"{tokens:>9} tokens" for tokens, _ in base))
    for column, speeds in fastest.items():
        cells = (f"{s:9.0f} ({s / b:.2f})" for (_, s), (_, b) in zip(speeds, base, strict=True))
        print(f"{column:26}" + " ".join(cells))


def run(column: str, environment: dict[str, str]) -> Any:
    command = [sys.executable, *sys.argv, "--column", column]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def read(column: str, options: argparse.Namespace, tokens: int) -> tuple[int, float]:
    """Tokens, and tokens a second."""
    import xllamacpp
    from xllamacpp import xllamacpp as core

    if not column.startswith("ggml"):
        load = ctypes.CDLL(core.__file__).ggml_backend_load
        load.argtypes, load.restype = [ctypes.c_char_p], ctypes.c_void_p
        if not load(str(smyrf.ggml.path()).encode()):
            sys.exit("the plug-in was refused")
    source = find_model("smollm2")
    kind = "DISABLED" if column.endswith("off") else "ENABLED"
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(source.folder / str(source.gguf))
    parameters.n_ctx, parameters.n_batch, parameters.n_parallel = 8448, 2048, 1
    parameters.n_ubatch, parameters.warmup = options.ubatch, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.flash_attn_type = getattr(
        xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{kind}"
    )
    with gzip.open(file_of("usr/share/dictd/devil.dict.dz"), "rt") as file:
        prompt = file.read()[2000 : 2000 + CHARACTERS * tokens]
    server = xllamacpp.Server(parameters)
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    return answer["timings"]["prompt_n"], answer["timings"]["prompt_per_second"]


if __name__ == "__main__":
    main()
