"""Exact: defaults out of the environment, and the line of the log at the first approximate call."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smyrf
from smyrf import _environment
from smyrf._environment import Defaults, read
from smyrf.compare import program
from smyrf.compare.problem import Problem


@pytest.fixture
def rows() -> tuple[Any, Any, Any]:
    """Keys that lie near a few points, so that tree leaves pairs out."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((8, 16), np.float32) * 4
    made = [centres[random.integers(0, 8, 2048)] for _ in range(2)]
    return (*(rows[None, None] for rows in made), made[1][None, None].copy())


def method_of(rows: tuple[Any, Any, Any], **options: Any) -> str:
    _, statistics = smyrf.attention(*rows, return_stats=True, **options)
    return str(statistics.method)


def test_values_are_read_and_others_refused() -> None:
    assert read({}) == read({"SMYRF_METHOD": "auto", "SMYRF_TOLERANCE": ""}) == Defaults()
    given = {"SMYRF_METHOD": "dense", "SMYRF_TOLERANCE": ".2", "SMYRF_NUM_THREADS": "3"}
    assert read(given) == Defaults("dense", 0.2, 3)
    refused = {
        "METHOD": ["lsh"],
        "TOLERANCE": ["1", "x", "nan", "-0.1"],
        "NUM_THREADS": ["0", "2.5"],
    }
    for name, bad in ((name, bad) for name, values in refused.items() for bad in values):
        with pytest.raises(ValueError, match=f"SMYRF_{name}: got '{bad}', expected"):
            read({f"SMYRF_{name}": bad})


def test_a_bad_value_is_one_sentence_of_the_first_call() -> None:
    code = "import numpy, smyrf; x = numpy.ones((1, 1, 2, 2), 'f'); smyrf.attention(x, x, x)"
    environment = {**os.environ, "SMYRF_TOLERANCE": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stderr.splitlines()[-1].startswith("ValueError: SMYRF_TOLERANCE: got '2', expected")


@pytest.mark.parametrize("tensors", [False, True])
def test_what_a_call_says_wins(
    tensors: bool, rows: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if tensors:
        rows = tuple(torch.from_numpy(x) for x in rows)  # type: ignore[assignment]
    short = tuple(x[:, :, :512] for x in rows)
    assert (method_of(rows), method_of(short)) == ("tree", "dense")  # type: ignore[arg-type]
    monkeypatch.setattr(_environment, "defaults", Defaults(method="dense"))
    assert method_of(rows) == method_of(rows, tolerance=0.1) == "dense"
    assert method_of(rows, method="tree") == "tree"
    monkeypatch.setattr(_environment, "defaults", Defaults(method="tree"))
    assert method_of(short) == "tree"  # type: ignore[arg-type]
    for exact in ({"method": "dense"}, {"tolerance": 0}, {"is_causal": True}, {"window": (5, 5)}):
        assert method_of(short, **exact) == "dense"  # type: ignore[arg-type]
    monkeypatch.setattr(_environment, "defaults", Defaults(tolerance=0.0))
    assert method_of(rows) == "dense"
    assert method_of(rows, tolerance=0.1) == "tree"
    if tensors:
        monkeypatch.setattr(_environment, "defaults", Defaults(method="tree", tolerance=0.2))
        rows[0].requires_grad_()
        assert method_of(rows) == "dense"  # a gradient is exact where nobody gives a tolerance


def test_the_tolerance_and_the_threads_arrive(
    rows: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = smyrf.attention(*rows, tolerance=0.3)
    monkeypatch.setattr(_environment, "defaults", Defaults(tolerance=0.3, num_threads=1))
    np.testing.assert_array_equal(smyrf.attention(*rows), asked)
    monkeypatch.setattr(_environment, "defaults", Defaults(num_threads=-1))
    with pytest.raises(ValueError, match="num_threads"):
        smyrf.attention(*rows)
    smyrf.attention(*rows, num_threads=1)


@pytest.mark.parametrize(("method", "level"), [("auto", "WARNING"), ("tree", "INFO")])
def test_the_first_approximate_call_is_logged_once(
    method: str, level: str, rows: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(_environment, "_said", False)
    caplog.set_level(logging.INFO, "smyrf")
    smyrf.attention(*rows, method="dense")
    smyrf.attention(*(x[:, :, :2] for x in rows), method="tree")  # every pair
    assert not caplog.records
    for _ in range(2):
        smyrf.attention(*rows, method=method, tolerance=0.1)
        smyrf.attention(*map(torch.from_numpy, rows), method="lsh")
    (record,) = caplog.records
    assert (record.levelname, record.name) == (level, "smyrf")
    assert "method tree, tolerance 0.1 a head" in record.getMessage()
    assert "SMYRF_METHOD=dense" in record.getMessage()


@pytest.mark.parametrize(
    ("given", "threads"),
    [({"OMP_NUM_THREADS": "9" * 20}, None), ({"OMP_NUM_THREADS": "1"}, 1),
     ({"SMYRF_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2), ({"SMYRF_NUM_THREADS": "0"}, None)],
)  # fmt: skip
def test_info_says_what_a_call_takes(given: dict[str, str], threads: int | None) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "smyrf", "info"],
        env={**os.environ, **given}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = next(line for line in ran.stdout.splitlines() if line.startswith("threads"))
    assert int(said.split()[1]) == (threads or len(os.sched_getaffinity(0)))
    refused = given.get("SMYRF_NUM_THREADS") == "0"
    assert ran.returncode == 2 * refused
    assert ran.stderr.startswith("smyrf: SMYRF_NUM_THREADS: got '0'") == refused


def test_compare_runs_everything_on_the_threads_of_its_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = program.Wanted([], None, 1, {})
    monkeypatch.setattr(_environment, "defaults", Defaults(num_threads=2))
    assert program._threads(wanted) == 1
    assert program._threads(replace(wanted, threads=None)) == 2
    monkeypatch.setattr(_environment, "defaults", Defaults(num_threads=4096))
    with pytest.raises(Problem, match="SMYRF_NUM_THREADS 4096: this machine has"):
        program._threads(replace(wanted, threads=None))
    monkeypatch.setattr(_environment, "problem", "SMYRF_METHOD: got 'x'")
    with pytest.raises(Problem, match="SMYRF_METHOD"):
        program._threads(wanted)


def test_info_on_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "smyrf", "info"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert ran.stderr.startswith("smyrf: stdout: can't be written")
