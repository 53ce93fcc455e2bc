"""Stock llama.cpp with the plug-in against itself without it, on two layers of SmolLM2."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smyrf.ggml
from smyrf.compare.models import find_model

pytest.importorskip("xllamacpp")
gguf = pytest.importorskip("gguf")

LAYERS = 2
# Of log-probabilities. ggml rounds queries to the cache's dtype, and for short chunks sums to
# float16; we don't. Prompts that are read at the same time are cut into chunks by chance.
ROUNDING = 0.02
ROUNDING_TOGETHER = 0.06


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first layers with float32 weights: 4-bit ones blur what attention does."""
    target = tmp_path_factory.mktemp("llama") / "smollm2.gguf"
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
        value = LAYERS if field.name == "llama.block_count" else field.contents()
        kinds = field.types
        writer.add_key_value(field.name, value, kinds[0], kinds[1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        layer = tensor.name.split(".")[1]
        if tensor.name.startswith("blk.") and int(layer) >= LAYERS:
            continue
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def answers(
    model: Path, plugin: bool, prompts: list[str], method: str = "dense", **settings: Any
) -> Any:
    job = {
        "model": str(model),
        "plugin": str(smyrf.ggml.path()) if plugin else "",
        "settings": settings,
        "prompts": prompts,
        "parallel": settings.get("n_parallel", 1),
    }
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("llama_server.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"SMYRF_METHOD": method},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def book() -> str:
    with gzip.open("/usr/share/dictd/devil.dict.dz", "rt") as file:
        return file.read()[3000:60000]


def assert_close(got: Any, want: Any, bound: float = ROUNDING) -> None:
    for ours, theirs in zip(got, want, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert len(one.keys() & other.keys()) >= 3  # of five
            for token in one.keys() & other.keys():
                assert one[token] == pytest.approx(other[token], abs=bound)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_ubatch": 128},
        {"n_ubatch": 512},
        {"n_ubatch": 2048},
        {"n_ubatch": 512, "cache_type_k": "BF16", "cache_type_v": "BF16"},
        {"n_ubatch": 512, "cache_type_k": "Q8_0", "cache_type_v": "Q8_0"},
        {"n_ubatch": 256, "n_parallel": 3, "kv_unified": True, "n_ctx": 4096},
        {"n_ubatch": 256, "n_parallel": 3, "kv_unified": False, "n_ctx": 4096},
    ],
    ids=["chunks of 128", "of 512", "whole", "bfloat16", "q8_0", "one cache", "three caches"],
)
def test_dense_answers_as_llama_cpp_does(model: Path, book: str, settings: dict[str, Any]) -> None:
    prompts = [book[i * 5000 : i * 5000 + 3000] for i in range(settings.get("n_parallel", 1))]
    with_us = answers(model, True, prompts, **settings)
    bound = ROUNDING if len(prompts) == 1 else ROUNDING_TOGETHER
    assert_close(with_us, answers(model, False, prompts, **settings), bound)


def test_a_prompt_that_begins_like_the_last_one(model: Path, book: str) -> None:
    """The cache is cut to the common beginning, and the rest of the prompt follows it."""
    prompts = [book[:3000], book[:1500] + book[5000:6500], book[:2000]]
    with_us = answers(model, True, prompts, n_ubatch=256)
    assert_close(with_us, answers(model, False, prompts, n_ubatch=256))
