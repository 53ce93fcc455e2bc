"""Approximate: narrow products on real heads, and what `precision` means in a call."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from test_real_heads import HEADS, head

import smyrf
from smyrf import _core
from smyrf.collector import relative_error


def has_narrow_products() -> bool:
    rows = np.ones((1, 1, 256, 4), np.float32)
    stats = smyrf.attention(rows, rows, rows, method="dense", precision="int8", return_stats=True)
    return bool(stats[1].precision == [["int8"]])


NARROW = has_narrow_products()


def shortened(name: str) -> Any:
    """So many rows that "auto" keeps every pair."""
    return [np.ascontiguousarray(x[:, :, :1024]) for x in head(name)]


@pytest.mark.parametrize("name", HEADS)
def test_auto_stays_within_the_tolerance(name: str) -> None:
    arrays = shortened(name)
    exact, exact_lse = smyrf.attention(*arrays, method="dense", return_lse=True)
    for tolerance in (0.02, 0.05, 0.1):
        out, lse, stats = smyrf.attention(
            *arrays, tolerance=tolerance, return_lse=True, return_stats=True
        )
        assert stats.method == "dense"
        expected, expected_lse = stats.expected_error[0, 0], stats.expected_lse_error[0, 0]
        assert expected <= tolerance
        assert relative_error(out, exact, arrays[2])[0, 0] <= expected + 1e-6
        assert np.sqrt(np.mean((lse - exact_lse) ** 2)) <= expected_lse + 1e-3
        if NARROW:
            assert stats.precision[0][0] != "float32"


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_a_precision_that_is_named_is_taken(precision: Any) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 300, 24), np.float32)
    for method in ("dense", "auto"):
        out, stats = smyrf.attention(
            q, k, v, method=method, precision=precision, tolerance=None, return_stats=True
        )
        assert stats.precision == [[precision if NARROW else "float32"] * 2]
        assert pickle.loads(pickle.dumps(stats)).precision == stats.precision
        plan = smyrf.plan(q, k, v, method=method, precision=precision)
        assert plan.precision == precision
        assert np.array_equal(out, smyrf.attention(q, k, v, plan=plan))


@pytest.mark.parametrize("method", ["dense", "auto"])
def test_float32_is_exact(method: Any) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 300, 24), np.float32)
    out, stats = smyrf.attention(q, k, v, method=method, precision="float32", return_stats=True)
    assert stats.precision == [["float32"] * 2]
    assert np.array_equal(out, smyrf.attention(q, k, v, method="dense"))


def test_what_needs_a_gradient_is_exact() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = torch.randn(3, 1, 2, 300, 24)
    exact = smyrf.attention(q, k, v, method="dense")
    out, stats = smyrf.attention(q.requires_grad_(), k, v, return_stats=True)
    assert stats.precision == [["float32"] * 2]
    assert torch.equal(out, exact)


def test_bad_precisions_are_refused() -> None:
    x = np.ones((1, 1, 300, 8), np.float32)
    with pytest.raises(ValueError, match="precision: got 'int4', accepted are auto, float32"):
        smyrf.attention(x, x, x, precision="int4")  # type: ignore[call-overload]
    with pytest.raises(NotImplementedError, match="precision: method lsh computes in float32"):
        smyrf.attention(x, x, x, method="lsh", precision="int8")
    with pytest.raises(NotImplementedError, match="precision: dropout is done in float32"):
        smyrf.attention(x, x, x, dropout_p=0.1, precision="int8")


@pytest.mark.parametrize("name", _core.instruction_sets())
def test_every_instruction_set_has_the_error_that_it_expects(name: str) -> None:
    arrays = shortened("minilm-4-0")
    exact = smyrf.attention(*arrays, method="dense")
    _core.force_instruction_set(name)
    try:
        out, stats = smyrf.attention(*arrays, return_stats=True)
    finally:
        _core.force_instruction_set("")
    error = relative_error(out, exact, arrays[2])[0, 0]
    assert error <= stats.expected_error[0, 0] + 1e-5
