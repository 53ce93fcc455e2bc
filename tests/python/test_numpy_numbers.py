"""Options that are NumPy's numbers and bools count as Python's; nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import smyrf

RNG = np.random.default_rng(22)
ARRAYS = tuple(RNG.standard_normal((1, 2, rows, 8), np.float32) for rows in (20, 40, 40))
TENSORS = tuple(torch.from_numpy(array) for array in ARRAYS)
LSH = {"method": "lsh", "cluster_size": 8, "n_hashes": 2}
TREE = {"method": "tree", "max_density": 0.5}

# Options as Python's and as NumPy's.
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"is_causal": True}, {"is_causal": np.True_}),
    ({"is_causal": False}, {"is_causal": np.False_}),
    ({"is_causal": True}, {"is_causal": np.ones(3, bool).any()}),
    ({"is_causal": True}, {"is_causal": np.array(True)}),
    ({"enable_gqa": True}, {"enable_gqa": np.True_}),
    ({"scale": 0.25}, {"scale": np.float32(0.25)}),
    ({"scale": 0.25}, {"scale": np.float16(0.25)}),
    ({"scale": 2.0}, {"scale": np.int64(2)}),
    ({"dropout_p": 0.5, "seed": 3}, {"dropout_p": np.float32(0.5), "seed": np.uint64(3)}),
    ({"window": (3, -1)}, {"window": (np.int32(3), np.int8(-1))}),
    ({"window": (3, 2)}, {"window": [np.int64(3), np.uint8(2)]}),
    ({"is_causal": True, "positions": (9, 2)}, {"is_causal": True, "positions": np.array([9, 2])}),
    (
        {"is_causal": True, "positions": (9, 2)},
        {"is_causal": True, "positions": (np.int64(9), np.uint8(2))},
    ),
    ({"num_threads": 1}, {"num_threads": np.int16(1)}),
    ({**LSH, "n_hashes": 3}, {**LSH, "n_hashes": np.int64(3)}),
    ({**LSH, "cluster_size": 10}, {**LSH, "cluster_size": np.uint8(10)}),
    ({**LSH, "seed": 4}, {**LSH, "seed": np.int32(4)}),
    ({"tolerance": 0.5}, {"tolerance": np.float32(0.5)}),
    ({**TREE, "max_density": 0.5}, {**TREE, "max_density": np.float16(0.5)}),
    ({"method": "dense"}, {"method": np.str_("dense"), "layout": np.str_("BHND")}),
]


@pytest.mark.parametrize(("python", "numpy"), SAME, ids=lambda options: str(options))
def test_numbers_of_numpy_count_as_those_of_python(
    python: dict[str, Any], numpy: dict[str, Any]
) -> None:
    wanted = smyrf.attention(*ARRAYS, **python)
    assert np.array_equal(smyrf.attention(*ARRAYS, **numpy), wanted)
    assert np.array_equal(smyrf.attention(*TENSORS, **numpy).numpy(), wanted)
    out, statistics = smyrf.attention(*TENSORS, **numpy, return_stats=np.True_)
    assert np.array_equal(out.numpy(), wanted)
    assert statistics.method
    trained = [tensor.clone().requires_grad_() for tensor in TENSORS]
    smyrf.attention(*trained, **numpy).sum().backward()
    assert trained[0].grad is not None
    plans = [smyrf.plan(*ARRAYS[:2], value=ARRAYS[2], **given) for given in (python, numpy)]
    assert plans[0].__reduce__()[1] == plans[1].__reduce__()[1]
    assert smyrf.plan(*TENSORS[:2], value=TENSORS[2], **numpy).method == plans[0].method
    if "num_threads" not in numpy:
        exact = [smyrf.reference.attention(*ARRAYS, **given) for given in (python, numpy)]
        assert np.array_equal(*exact)


def test_what_is_returned_may_be_asked_for_by_numpy() -> None:
    results = smyrf.attention(*ARRAYS, return_lse=np.True_, return_stats=np.True_)
    assert len(results) == 3
    assert smyrf.attention(*ARRAYS, return_lse=np.False_, return_stats=np.False_).shape
    with smyrf.collect(errors=bool(np.True_)) as records:
        smyrf.attention(*ARRAYS, return_stats=np.False_)
    assert records[0].relative_error is not None


def test_merge_takes_them_too() -> None:
    out, lse = smyrf.attention(*ARRAYS, return_lse=True)
    wanted = smyrf.merge(out, lse, out, lse, num_threads=1)
    found = smyrf.merge(out, lse, out, lse, num_threads=np.int64(1))
    assert np.array_equal(found[0], wanted[0])


@pytest.mark.parametrize(
    "options",
    [
        {**LSH, "n_hashes": np.float32(2.7)},  # not 2
        {**LSH, "n_hashes": np.float64(2.0)},
        {**LSH, "n_hashes": np.array(2.7)},
        {**LSH, "n_hashes": np.complex64(2)},
        {"method": "lsh", "cluster_size": np.float16(8.5)},
        {**LSH, "seed": np.float32(3.5)},
        {"window": (np.float32(1.5), 2)},
        {"window": np.str_("12")},
        {"scale": np.complex64(1 + 2j)},
        {"scale": np.complex128(0.5)},
        {"scale": np.str_("0.5")},
        {"scale": np.datetime64("2020")},
        {"scale": np.array([0.5, 0.5])},
        {"is_causal": np.int64(1)},
        {"is_causal": np.array([True, False])},
        {"is_causal": np.float32(1)},
        {"enable_gqa": np.str_("yes")},
        {"is_causal": np.array(1)},
        {"num_threads": np.float64(1.5)},
        {"method": "tree", "tolerance": np.complex64(0.1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("arrays", [ARRAYS, TENSORS], ids=["numpy", "torch"])
def test_what_is_no_such_number_is_refused(arrays: Any, options: dict[str, Any]) -> None:
    name = list(options)[-1]
    with pytest.raises(TypeError, match=f"^{name}: got "):
        smyrf.attention(*arrays, **options)
