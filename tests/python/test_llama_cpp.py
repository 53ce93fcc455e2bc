"""Stock llama.cpp with the plug-in against itself without it: layers of SmolLM2 and of MiniLM."""

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
from numpy.typing import NDArray

import smyrf.ggml
from smyrf.compare.debian import file_of

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

from llama_models import write_minilm, write_smollm2

HERE = Path(__file__).parent
# Relative, of logits or embeddings. With a float32 or float16 cache both sides round alike; ggml
# rounds queries to bfloat16 where the cache has it, and we don't. Chunks below 64 tokens are left
# out: for those ggml's flash attention is a thousand times as far from its attention without it.
ROUNDING = 3e-5
ROUNDING_BFLOAT16 = 2e-3
ROUNDING_MADE_UP = 1e-4  # made-up weights let roundings grow
# Of log-probabilities, where prompts read at the same time are cut into chunks by chance.
ROUNDING_TOGETHER = 0.06
FLOAT32 = {"type_k": 0, "type_v": 0}
BFLOAT16 = {"type_k": 30, "type_v": 30}
Q8_0 = {"type_k": 8, "type_v": 8}
Arrays = list[NDArray[np.float32]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("llama")
    write_smollm2(target / "smollm2.gguf", layers=2)
    write_minilm(target / "minilm.gguf", layers=2, positions=4096)
    return target


@pytest.fixture(scope="session")
def book() -> str:
    with gzip.open(file_of("usr/share/dictd/devil.dict.dz"), "rt") as file:
        return file.read()[3000:60000]


def start(program: str, job: Any, *arguments: str, **environment: str) -> tuple[str, str]:
    """What a program prints to standard output and standard error."""
    done = subprocess.run(
        [sys.executable, HERE / program, *arguments],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def arrays(folder: Path, jobs: list[Any], method: str, **environment: str) -> tuple[Any, str]:
    """What jobs of llama_host.py return, a list each, and what they logged. `method`: of the
    plug-in, or "none" without it."""
    plugin = "" if method == "none" else str(smyrf.ggml.path())
    written = folder / f"{os.getpid()}.npz"
    named = [
        [name, model if ":" in model else str(folder / f"{model}.gguf"), given]
        for name, model, given in jobs
    ]
    environment |= {} if method == "none" else {"SMYRF_METHOD": method}
    _, log = start("llama_host.py", [plugin, named], str(written), **environment)
    made: list[Arrays] = [[] for _ in jobs]
    with np.load(written) as archive:
        for name, array in archive.items():
            made[int(name.split(".")[0])].append(array)
    return made, log


def distance(got: Arrays, want: Arrays) -> float:
    """Relative, over all arrays of a job, of how they differ from their rows' means."""
    rows = [array.reshape(-1, array.shape[-1]) for array in want]
    size = sum(np.square(array - array.mean(axis=1, keepdims=True)).sum() for array in rows)
    difference = sum(np.square(a - b).sum() for a, b in zip(got, want, strict=True))
    return float(np.sqrt(difference / size))


def jobs(kind: str, book: str) -> dict[str, Any]:
    text: dict[str, Any] = {"text": book[:6000], "length": 1024}
    texts = [book[:2000], book[5000:6500], book[9000:9800]]
    encoder = {"n_ctx": 3072, "n_batch": 3072, "n_ubatch": 3072}

    def smollm2(job: str, **given: Any) -> list[Any]:
        return [job, "smollm2", {"n_ubatch": 512} | FLOAT32 | given]

    return {
        "caches": {
            "chunks of 128": smollm2("read", **text, n_ubatch=128),
            "chunks of 512, float16": smollm2("read", **text, type_k=1, type_v=1),
            "whole, bfloat16": smollm2("read", **text, n_ubatch=2048, **BFLOAT16),
            "whole, 8 bits": smollm2("read", **text, n_ubatch=2048, **Q8_0),
            "shifted": smollm2("shifted", **text, n_ctx=512),
            "saved and loaded": smollm2("saved", **text),
        },
        "sequences": {
            "one cache": smollm2("together", texts=texts, kv_unified=True),
            "a cache each": smollm2("together", texts=texts, n_ubatch=1024, n_ctx=3072),
            "branches, one cache": smollm2("branched", **text, kv_unified=True),
            "branches, a cache each": smollm2("branched", **text, n_ubatch=1024),
            "encoder": ["embed", "minilm", {"texts": texts} | encoder],
            "encoder, long": ["embed", "minilm", {"texts": [book[:9000]]} | encoder],
        },
    }[kind]


@pytest.mark.parametrize("kind", ["caches", "sequences"])
def test_dense_computes_what_llama_cpp_does(folder: Path, book: str, kind: str) -> None:
    named = jobs(kind, book)
    want, _ = arrays(folder, list(named.values()), "none")
    got, log = arrays(folder, list(named.values()), "dense", SMYRF_LOG="1")
    distances = {name: distance(*pair) for name, *pair in zip(named, got, want, strict=True)}
    assert not distances.pop("whole, bfloat16", 0.0) > ROUNDING_BFLOAT16
    assert {name: far for name, far in distances.items() if not far <= ROUNDING} == {}
    # A line when a context is freed, of which jobs have one or two. We don't take 8 bits.
    lines = [line for line in log.splitlines() if line.startswith("smyrf: exact: ")]
    assert len(lines) >= len(named) - 1


def test_tree_is_as_far_off_as_its_tolerance_lets_it_be(folder: Path, book: str) -> None:
    """Errors of two layers' attention add up in the answer, and all else that adds to it dilutes
    them."""
    size = {"n_ctx": 4096, "n_batch": 4096, "n_ubatch": 4096}
    named = [
        [
            "read",
            "smollm2",
            {"text": book, "length": 4608, "n_ctx": 6144, "n_ubatch": 2048} | FLOAT32,
        ],
        ["embed", "minilm", {"texts": [book[:14000]]} | size],
    ]
    want, _ = arrays(folder, named, "none")
    before = [ROUNDING, ROUNDING]
    for tolerance in (0.02, 0.1):
        environment = {"SMYRF_TOLERANCE": str(tolerance), "SMYRF_LOG": "1"}
        got, log = arrays(folder, named, "auto", **environment)
        # The first chunk has no earlier keys.
        assert distance(got[0][:1], want[0][:1]) <= ROUNDING
        far = [distance(got[0][1:], want[0][1:]), distance(got[1], want[1])]
        assert all(2 * a < b <= tolerance for a, b in zip(before, far, strict=True))
        lines = [line for line in log.splitlines() if line.startswith("smyrf: ")]
        assert len(lines) == 2
        for line in lines:
            # Two layers: the second of three chunks (the third is too short), or the whole text.
            assert "tree: 2 calls" in line
            assert f"largest error expected {100 * tolerance:g} %" in line
        before = far


LEFT_TO_GGML = ("gemma2", "mpt", "jina-bert-v2", "gpt-oss")


def test_architectures_with_made_up_weights(tmp_path: Path) -> None:
    """Windows, latent keys wider than values, encoders; and soft caps, ALiBi and sinks, of which
    the plug-in must take none."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(512, size=length).tolist() for length in (300, 200, 130)]
    size = {"n_ctx": 1536, "n_batch": 768, "n_ubatch": 768} | FLOAT32
    taken = ("gpt2", "qwen2", "gemma3", "phi3", "deepseek2", "bert", "nomic-bert", "modern-bert")
    named = [
        ["embed" if "bert" in name else "together", f"random:{name}", {"texts": texts} | size]
        for name in taken + LEFT_TO_GGML
    ]
    want, _ = arrays(tmp_path, named, "none")
    got, log = arrays(tmp_path, named, "dense", SMYRF_LOG="1")
    distances = dict(zip(taken + LEFT_TO_GGML, map(distance, got, want), strict=True))
    left = {name: distances.pop(name) for name in LEFT_TO_GGML}
    assert set(left.values()) == {0.0}
    assert {name: far for name, far in distances.items() if not far <= ROUNDING_MADE_UP} == {}
    # A line when a context is freed where it had calls.
    assert log.count("smyrf: exact: ") == len(taken)


def answers(
    model: Path, plugin: bool, prompts: list[str], **settings: Any
) -> tuple[list[list[dict[str, float]]], str]:
    job = {
        "model": str(model),
        "plugin": str(smyrf.ggml.path()) if plugin else "",
        "settings": settings,
        "prompts": prompts,
        "parallel": settings.get("n_parallel", 1),
    }
    out, log = start("llama_server.py", job, SMYRF_METHOD="dense", SMYRF_LOG="1")
    return json.loads(out.splitlines()[-1]), log


def assert_close(got: Any, want: Any) -> None:
    for ours, theirs in zip(got, want, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert len(one.keys() & other.keys()) >= 3  # of five
            for token in one.keys() & other.keys():
                assert one[token] == pytest.approx(other[token], abs=ROUNDING_TOGETHER)


@pytest.mark.parametrize("unified", [True, False], ids=["one cache", "a cache each"])
def test_the_server_answers_several_prompts_at_once(folder: Path, book: str, unified: bool) -> None:
    """And a fourth that begins as the first does, for which a cache is cut."""
    prompts = [book[i * 5000 : i * 5000 + 3000] for i in range(3)]
    prompts.append(book[:1500] + book[20000:21500])
    settings = {"n_ubatch": 256, "n_parallel": 3, "kv_unified": unified, "n_ctx": 4096}
    got, log = answers(folder / "smollm2.gguf", True, prompts, **settings)
    want, _ = answers(folder / "smollm2.gguf", False, prompts, **settings)
    assert_close(got, want)
    # The server's own log is not asked for, and its contexts may never be freed.
    assert "smyrf: exact: " in log
