"""`merge` (relative: parts against the whole), `estimate` and `auto` (against what a call does)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import Array
from test_real_heads import HEADS, head

import smyrf


def parts(arrays: tuple[Array, Array, Array], at: int, **options: Any) -> list[tuple[Array, Array]]:
    query, key, value = arrays
    options = {"method": "dense", **options}
    return [
        smyrf.attention(query, key[:, :, part], value[:, :, part], return_lse=True, **options)
        for part in (slice(None, at), slice(at, None))
    ]


@pytest.mark.parametrize("name", HEADS)
def test_parts_of_the_keys_merge_to_the_whole(name: str) -> None:
    arrays = head(name)
    out, lse = smyrf.attention(*arrays, method="dense", return_lse=True)
    (left, left_lse), (right, right_lse) = parts(arrays, 100)
    given = left.copy()
    merged, merged_lse = smyrf.merge(left, left_lse, right, right_lse)
    assert np.array_equal(left, given)
    np.testing.assert_allclose(merged, out, rtol=1e-4, atol=1e-5 * float(np.abs(out).max()))
    np.testing.assert_allclose(merged_lse, lse, rtol=1e-6, atol=1e-5)


def test_parts_of_tree_merge_within_its_tolerance() -> None:
    arrays = head("smollm2-7-2")
    out, lse = smyrf.attention(*arrays, method="dense", return_lse=True)
    (left, left_lse), (right, right_lse) = parts(arrays, 1000, method="tree", tolerance=0.1)
    merged, merged_lse = smyrf.merge(left, left_lse, right, right_lse)
    assert 1e-4 < np.linalg.norm(merged - out) / np.linalg.norm(out) < 0.15
    assert np.sqrt(np.mean((merged_lse - lse) ** 2)) < 0.1


def test_a_part_without_keys_adds_nothing_and_layouts_agree() -> None:
    arrays = head("whisper-0-5")
    out, lse = smyrf.attention(*arrays, method="dense", return_lse=True)
    (left, left_lse), (nothing, minus) = parts(arrays, arrays[1].shape[2])
    assert np.all(np.isneginf(minus))
    for one, other in (
        ((left, left_lse), (nothing, minus)),
        ((nothing, minus), (left, left_lse)),
    ):
        merged, merged_lse = smyrf.merge(*one, *other)
        assert np.array_equal(merged, out)
        assert np.array_equal(merged_lse, lse)
    both = smyrf.merge(nothing, minus, nothing, minus)
    assert np.all(both[0] == 0)
    assert np.all(np.isneginf(both[1]))

    (left, left_lse), (right, right_lse) = parts(arrays, 300)
    expected = smyrf.merge(left, left_lse, right, right_lse)
    rows = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (left, right)]
    merged, merged_lse = smyrf.merge(rows[0], left_lse, rows[1], right_lse, layout="BNHD")
    assert np.array_equal(merged.swapaxes(1, 2), expected[0])
    assert np.array_equal(merged_lse, expected[1])
    tensors = [torch.from_numpy(x) for x in (left, left_lse, right, right_lse)]
    for found, wanted in zip(smyrf.merge(*tensors), expected, strict=True):
        assert np.array_equal(found.numpy(), wanted)
    low = smyrf.merge(tensors[0].bfloat16(), tensors[1], tensors[2].bfloat16(), tensors[3])[0]
    assert low.dtype == torch.bfloat16
    assert float((low - torch.from_numpy(expected[0])).norm() / low.float().norm()) < 0.01


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_parts_without_columns_merge_as_attention_gives_them(kind: Any) -> None:
    arrays = [np.random.default_rng(3).standard_normal((1, 2, 9, 4), np.float32)] * 3
    query, key, value = (kind(array) for array in arrays)
    _, lse = smyrf.attention(query, key, value, return_lse=True)
    (left, left_lse), (right, right_lse) = parts((query, key, value[..., :0]), 4)
    merged, merged_lse = smyrf.merge(left, left_lse, right, right_lse)
    assert merged.shape == (1, 2, 9, 0)
    np.testing.assert_allclose(merged_lse, lse, rtol=1e-5)


def test_merge_says_what_is_wrong() -> None:
    out, lse = np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 2, 3), np.float32)
    with pytest.raises(TypeError, match="other_out: got list"):
        smyrf.merge(out, lse, [1], lse)
    with pytest.raises(ValueError, match="other_out: got shape"):
        smyrf.merge(out, lse, out[:, :1], lse)
    with pytest.raises(ValueError, match=r"other_lse: got float32 .* expected contiguous float32"):
        smyrf.merge(out, lse, out, lse[:, :1])
    with pytest.raises(TypeError, match=r"lse: .*float64"):
        smyrf.merge(out, lse.astype(np.float64), out, lse)
    with pytest.raises(TypeError, match="other_out: got dtype float16"):
        smyrf.merge(out, lse, out.astype(np.float16), lse)
    with pytest.raises(TypeError, match="other_out: got a masked array"):
        smyrf.merge(out, lse, np.ma.MaskedArray(out, out == 0), lse)
    with pytest.raises(ValueError, match="num_threads: got -1"):
        smyrf.merge(out, lse, out, lse, num_threads=-1)
    wide = np.zeros((1, 2, 3, 2049), np.float32)
    with pytest.raises(
        ValueError, match=r"out: got head dimension 2049, accepted are [01] to 2048"
    ):
        smyrf.merge(wide, lse, wide, lse)
    tensors = [torch.from_numpy(x.copy()) for x in (out, lse, out, lse)]
    with pytest.raises(TypeError, match="lse: got ndarray"):
        smyrf.merge(tensors[0], lse, *tensors[2:])
    tensors[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient"):
        smyrf.merge(*tensors)


@pytest.mark.parametrize("name", HEADS)
def test_estimate_says_what_a_call_will_do(name: str) -> None:
    arrays = head(name)
    expected = smyrf.estimate(*arrays, tolerance=0.1)
    _, statistics = smyrf.attention(*arrays, method="tree", tolerance=0.1, return_stats=True)
    assert np.array_equal(expected.dense_heads, statistics.dense_heads)
    assert np.array_equal(expected.expected_error, statistics.expected_error)
    assert np.array_equal(expected.expected_work, statistics.expected_work)
    # Density is that of the sampled blocks.
    np.testing.assert_allclose(expected.density, statistics.density, rtol=0.25)
    assert expected.execution_seconds == 0
    assert expected.method == "tree"
    tensors = [torch.from_numpy(np.array(x)) for x in arrays]
    again = smyrf.estimate(*tensors, tolerance=0.1)
    assert np.array_equal(again.density, expected.density)
    if not statistics.dense_heads.any():
        assert 0 < expected.expected_error[0, 0] <= 0.1
        assert 0 < expected.expected_work[0, 0] < 0.9


def test_estimate_refuses_lsh_and_knows_dense() -> None:
    arrays = head("minilm-4-0")
    with pytest.raises(NotImplementedError, match="lsh has no estimate"):
        smyrf.estimate(*arrays, method="lsh")
    dense = smyrf.estimate(*arrays, method="auto")
    assert dense.method == "dense"
    assert dense.density[0, 0] == 1


LONG = 2048
LONG_SHARED = 1536


def long_rows(seed: int, rows: int) -> Array:
    """(1, 1, rows, 16), only to be long enough: what `auto` chooses depends on shapes alone."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((1, 1, rows, 16), dtype=np.float32)


def taken(*arrays: Array, **options: Any) -> tuple[str, str]:
    _, statistics = smyrf.attention(*arrays, return_stats=True, **options)
    return statistics.method, statistics.reason


def test_auto_takes_tree_where_it_is_long_and_can() -> None:
    query, key, value = (long_rows(i, LONG) for i in range(3))
    assert taken(query, key, value)[0] == "tree"
    assert taken(query, key, value, tolerance=0.2, seed=3)[0] == "tree"
    mask = np.ones((1, LONG), bool)
    mask[0, -10:] = False
    assert taken(query, key, value, key_padding_mask=mask)[0] == "tree"
    assert taken(query[:, :, 1:], key, value)[0] == "dense"
    shared = np.concatenate([query[:, :, :LONG_SHARED]] * 2, axis=1)
    group = {"enable_gqa": True}
    keys, values = key[:, :, :LONG_SHARED], value[:, :, :LONG_SHARED]
    assert taken(shared, keys, values, **group)[0] == "tree"
    assert taken(shared[:, :, 1:], keys, values, **group)[0] == "dense"
    assert taken(query, key[:, :, 1:], value[:, :, 1:])[0] == "dense"
    for options in (
        {"is_causal": True},
        {"window": (9, 9)},
        {"tolerance": 0.0},
        {"attn_mask": np.ones((1, 1, 1, LONG), bool)},
    ):
        method, reason = taken(query, key, value, **options)
        assert method == "dense"
        assert next(iter(options)).split("_")[-1] in reason
    assert smyrf.plan(query, key).method == "dense"  # without value
    assert smyrf.plan(query, key, value=value).method == "tree"


def test_auto_does_short_entries_of_a_padded_batch_as_dense() -> None:
    query, key, value = (np.concatenate([long_rows(i, LONG)] * 2) for i in range(3))
    mask = np.ones((2, LONG), bool)
    mask[1, 700:] = False
    out, statistics = smyrf.attention(
        query, key, value, key_padding_mask=mask, query_padding_mask=mask, return_stats=True
    )
    assert statistics.method == "tree"
    assert statistics.dense_heads[1, 0]
    short = smyrf.attention(query[1:, :, :700], key[1:, :, :700], value[1:, :, :700])
    np.testing.assert_allclose(out[1:, :, :700], short, rtol=1e-5, atol=1e-6)
