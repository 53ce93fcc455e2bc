"""Stock llama.cpp (the wheel of xllamacpp) answers prompts, in a process of its own.

Reads a JSON object from standard input: model, plugin (a path, or none), settings (of
CommonParams; cache types by name), prompts, parallel (prompts at the same time). Prints, a prompt
each, a list with the log-probabilities of the most likely tokens at each generated position.
"""

from __future__ import annotations

import ctypes
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp
from xllamacpp import xllamacpp as core

TOKENS = 3


def main() -> None:
    job = json.load(sys.stdin)
    if job["plugin"]:
        load = ctypes.CDLL(core.__file__).ggml_backend_load
        load.argtypes, load.restype = [ctypes.c_char_p], ctypes.c_void_p
        if not load(job["plugin"].encode()):
            sys.exit("the plug-in was refused")
    server = xllamacpp.Server(parameters(job["model"], job["settings"]))
    with ThreadPoolExecutor(job["parallel"]) as pool:
        answers = list(pool.map(lambda prompt: ask(server, prompt), job["prompts"]))
    print(json.dumps(answers))


def parameters(model: str, settings: dict[str, Any]) -> Any:
    made = xllamacpp.CommonParams()
    made.model.path = model
    made.n_ctx, made.n_batch, made.n_parallel, made.warmup = 2048, 2048, 1, False
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = 2
    enabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    made.flash_attn_type = enabled
    for name, value in settings.items():
        if name.startswith("cache_type"):
            value = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{value}")
        if not hasattr(made, name):
            sys.exit(f"unknown setting {name}")
        setattr(made, name, value)
    return made


def ask(server: Any, prompt: str) -> list[dict[str, float]]:
    answer = server.handle_completions(
        {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 5}
    )
    answer = json.loads(answer) if isinstance(answer, str) else answer
    positions = answer["choices"][0]["logprobs"]["content"]
    return [{one["token"]: one["logprob"] for one in at["top_logprobs"]} for at in positions]


if __name__ == "__main__":
    main()
