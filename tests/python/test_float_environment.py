"""Results in a process whose subnormal numbers are flushed to 0."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import smyrf


@pytest.fixture
def flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush")
    yield
    torch.set_flush_denormal(False)


def test_the_process_flushes_if_the_run_asks_for_it() -> None:
    """tools/test.sh runs some tests again beside a library that flushes in all threads."""
    asked = "flush_subnormals" in os.environ.get("LD_PRELOAD", "")
    assert (torch.tensor([1e-39]).mul(1.0).item() == 0.0) == asked


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("method", ["dense", "lsh", "tree"])
def test_small_float16_values_keep_their_digits(
    method: str, num_threads: int, flushed: None
) -> None:
    generator = np.random.default_rng(0)
    q, k, v = (
        (factor * generator.standard_normal((1, 2, 300, 16))).astype(np.float16)
        for factor in (1.0, 2e-5, 2e-5)
    )
    dials: dict[str, dict[str, Any]] = {
        "lsh": {"cluster_size": 300, "n_hashes": 1},
        "tree": {"tolerance": 0.01},
    }
    out = smyrf.attention(
        q, k, v, method=method, scale=1e4, num_threads=num_threads, **dials.get(method, {})
    )
    # By hand in float64, which flushing leaves alone where numbers are above 1e-308.
    logits = np.einsum("bhid,bhjd->bhij", q.astype(np.float64), k.astype(np.float64)) * 1e4
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64)
    error = np.linalg.norm(out.astype(np.float64) - exact) / np.linalg.norm(exact)
    # out is rounded to multiples of 2^-24.
    step = 2.0**-24 * np.sqrt(exact.size) / np.linalg.norm(exact)
    assert error < 0.02 + step
    assert torch.tensor(1e-39).mul(1.0).item() == 0.0  # the caller's environment is as it was
