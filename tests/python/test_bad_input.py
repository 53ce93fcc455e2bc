"""Hostile: every mistake ends in one sentence that names the argument, and nothing crashes."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import smyrf

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


def arguments() -> dict[str, Any]:
    """A sound call: B 2, H 3, Nq 5, Nk 7, D 8, Dv 4."""
    return {"query": normal(2, 3, 5, 8), "key": normal(2, 3, 7, 8), "value": normal(2, 3, 7, 4)}


class Bad(NamedTuple):
    """A change of a sound call, and what its error says."""

    changes: dict[str, Any]
    error: type[Exception]
    argument: str
    given: str
    accepted: str


LSH = {"method": "lsh"}
BAD_OPTIONS = [
    Bad({"layout": "BHDN"}, ValueError, "layout", "'BHDN'", "'BHND' and 'BNHD'"),
    Bad({"layout": None}, ValueError, "layout", "None", "'BHND' and 'BNHD'"),
    Bad({"method": "flash"}, ValueError, "method", "'flash'", "'auto', 'dense', 'lsh' and 'tree'"),
    Bad({"method": None}, ValueError, "method", "None", "'auto', 'dense', 'lsh' and 'tree'"),
    Bad({"method": 3}, ValueError, "method", "3", "'auto', 'dense', 'lsh' and 'tree'"),
    Bad({"dropout_p": 1.1}, ValueError, "dropout_p", "1.1", "from 0 (keep every pair) to 1 (drop"),
    Bad({"dropout_p": 1.0000001}, ValueError, "dropout_p", "1.0000001", "from 0"),
    Bad({"dropout_p": -0.1}, ValueError, "dropout_p", "-0.1", "from 0"),
    Bad({"dropout_p": math.nan}, ValueError, "dropout_p", "nan", "from 0"),
    Bad({"dropout_p": "x"}, TypeError, "dropout_p", "'x'", "a number from 0 to 1"),
    Bad({"is_causal": "yes"}, TypeError, "is_causal", "'yes'", "True or False"),
    Bad({"is_causal": None}, TypeError, "is_causal", "None", "True or False"),
    Bad({"enable_gqa": "yes"}, TypeError, "enable_gqa", "'yes'", "True or False"),
    Bad({"scale": math.nan}, ValueError, "scale", "nan", "finite"),
    Bad({"scale": math.inf}, ValueError, "scale", "inf", "finite"),
    Bad({"scale": -math.inf}, ValueError, "scale", "-inf", "finite"),
    Bad({"scale": 1e39}, ValueError, "scale", "1e+39", "finite float32"),
    Bad({"scale": 2.30000001e38}, ValueError, "scale", "2.30000001e+38", "to 2.3e+38"),
    Bad({"scale": "1"}, TypeError, "scale", "'1'", "finite number or None"),
    Bad({"scale": 1j}, TypeError, "scale", "1j", "finite number or None"),
    Bad({**LSH, "scale": 0.0}, ValueError, "scale", "0", "above 0"),
    Bad({**LSH, "scale": -0.5}, ValueError, "scale", "-0.5", "method='dense'"),
    Bad({**LSH, "n_hashes": 0}, ValueError, "n_hashes", "0", "from 1 to"),
    Bad({**LSH, "n_hashes": -1}, ValueError, "n_hashes", "-1", "from 1 to"),
    Bad({**LSH, "n_hashes": 10**6}, ValueError, "n_hashes", "1000000", "from 1 to"),
    Bad({**LSH, "n_hashes": 10**30}, ValueError, "n_hashes", str(10**30), "at least 1"),
    Bad({**LSH, "n_hashes": 2.5}, TypeError, "n_hashes", "2.5", "integer"),
    Bad({**LSH, "n_hashes": "3"}, TypeError, "n_hashes", "'3'", "integer"),
    Bad({**LSH, "cluster_size": 0}, ValueError, "cluster_size", "0", "from 1 to"),
    Bad({**LSH, "cluster_size": -32}, ValueError, "cluster_size", "-32", "from 1 to"),
    Bad({**LSH, "cluster_size": 1.5}, TypeError, "cluster_size", "1.5", "integer"),
    Bad({**LSH, "seed": -1}, ValueError, "seed", "-1", "0 to 2^63 - 1"),
    Bad({**LSH, "seed": 2**63}, ValueError, "seed", str(2**63), "0 to 2^63 - 1"),
    Bad({**LSH, "seed": 0.5}, TypeError, "seed", "0.5", "integer"),
    Bad({**LSH, "seed": torch.tensor(1.5)}, TypeError, "seed", "1.5", "integer"),
    Bad({**LSH, "seed": None}, TypeError, "seed", "None", "integer"),
    Bad({"n_hashes": 3}, ValueError, "n_hashes", "method is auto", "method='lsh'"),
    Bad({"cluster_size": 3}, ValueError, "cluster_size", "method is auto", "leave cluster_size"),
    Bad({"method": "dense", "seed": 3}, ValueError, "seed", "method is dense", "method='lsh'"),
    Bad({"tolerance": 1.0000001}, ValueError, "tolerance", "1.0000001", "below 1"),
    Bad({"max_density": 0.5}, ValueError, "max_density", "method is auto", "method='tree'"),
    Bad({"method": "dense", "n_hashes": 3}, ValueError, "n_hashes", "is dense", "leave n_hashes"),
    Bad({**LSH, "is_causal": True}, NotImplementedError, "is_causal", "lsh", "method='dense'"),
    Bad({**LSH, "window": (1, 1)}, NotImplementedError, "window", "lsh", "method='dense'"),
    Bad({"window": 3}, TypeError, "window", "3", "(left, right)"),
    Bad({"window": (3,)}, TypeError, "window", "3", "(left, right)"),
    Bad({"window": (1, 2, 3)}, TypeError, "window", "1, 2, 3", "(left, right)"),
    Bad({"window": (1.5, 2)}, TypeError, "window", "1.5, 2", "two integers"),
    Bad({"window": "ab"}, TypeError, "window", "'ab'", "(left, right)"),
    Bad({"window": {1, 2}}, TypeError, "window", "{1, 2}", "two integers"),
    Bad({"window": (np.True_, 0)}, TypeError, "window", "True", "two integers"),
    Bad({"positions": (Fraction(3, 2), 0)}, TypeError, "positions", "(3, 2)", "two integers"),
    Bad({"window": (-2, 1)}, ValueError, "window", "left = -2", "-1 for no bound"),
    Bad({"window": (1, -2)}, ValueError, "window", "right = -2", "-1 for no bound"),
    Bad({"positions": 3}, TypeError, "positions", "3", "(first_query, first_key)"),
    Bad({"positions": (1, 2, 3)}, TypeError, "positions", "1, 2, 3", "two integers"),
    Bad({"positions": (1, None)}, TypeError, "positions", "1, None", "two integers"),
    Bad({"positions": (-1, 0)}, ValueError, "positions", "first_query = -1", "0 to"),
    Bad({"positions": (0, 2**31)}, ValueError, "positions", f"first_key = {2**31}", "0 to"),
    Bad({"window": (2**63, 0)}, ValueError, "window", str(2**63), "integers"),
    Bad({"positions": (0, 2**63)}, ValueError, "positions", str(2**63), "integers"),
    Bad({"num_threads": -1}, ValueError, "num_threads", "-1", "1 and more"),
    Bad({"num_threads": 10**12}, ValueError, "num_threads", str(10**12), "number of threads"),
    Bad({"num_threads": 1.5}, TypeError, "num_threads", "1.5", "number of threads"),
]

KEPT = np.ones((2, 7), bool)
SEEN = np.ones((5, 7), bool)
ROWS = "float32, float16 or bfloat16"
BAD_ARRAYS = [
    Bad({"query": normal(8)}, TypeError, "query", "(8,)", "at least 2: (N, D), (batch, N, D)"),
    Bad({"key": normal(9, 3, 7, 8)}, ValueError, "key", "(9, 3, 7, 8)", "(2, heads, Nk, 8)"),
    Bad({"key": normal(9, 7, 8)}, ValueError, "key", "(9, 7, 8)", "broadcast with"),
    Bad({"key": normal(7, 9)}, ValueError, "key", "(7, 9)", "head dimension of query, 8"),
    Bad({"value": normal(6, 4)}, ValueError, "value", "(6, 4)", "7 like key"),
    Bad({"value": normal(5, 1, 4, 7, 4)}, ValueError, "value", "(5, 1, 4, 7, 4)", "broadcast with"),
    Bad({"key": normal(2, 3, 7, 9)}, ValueError, "key", "(2, 3, 7, 9)", "(2, heads, Nk, 8)"),
    Bad({"value": normal(2, 3, 6, 4)}, ValueError, "value", "(2, 3, 6, 4)", "(2, 3, 7, Dv)"),
    Bad({"value": normal(2, 2, 7, 4)}, ValueError, "value", "(2, 2, 7, 4)", "(2, 3, 7, Dv)"),
    Bad({"query": normal(2, 6, 5, 8)}, ValueError, "key", "3 heads", "enable_gqa=True"),
    Bad(
        {"query": normal(2, 4, 5, 8), "enable_gqa": True},
        ValueError,
        "query",
        "4 heads",
        "multiple of the key's 3",
    ),
    Bad(
        {"query": normal(2, 3, 5, 2049), "key": normal(2, 3, 7, 2049)},
        ValueError,
        "query",
        "2049",
        "1 to 2048",
    ),
    Bad({"value": normal(2, 3, 7, 2049)}, ValueError, "value", "2049", "1 to 2048"),
    Bad({"query": normal(2, 3, 5, 8, dtype=np.float64)}, TypeError, "query", "float64", ROWS),
    Bad({"query": normal(2, 3, 5, 8, dtype=np.int32)}, TypeError, "query", "int32", ROWS),
    Bad({"query": normal(2, 3, 5, 8, dtype=np.complex64)}, TypeError, "query", "complex64", ROWS),
    Bad({"query": normal(2, 3, 5, 8) > 0}, TypeError, "query", "bool", ROWS),
    Bad({"key": normal(2, 3, 7, 8, dtype=np.float64)}, TypeError, "key", "float64", ROWS),
    Bad({"key": normal(2, 3, 7, 8, dtype=np.float16)}, TypeError, "key", "float16", "float32 like"),
    Bad(
        {"value": normal(2, 3, 7, 4, dtype=np.float16)}, TypeError, "value", "float16", "like query"
    ),
    Bad({"attn_mask": SEEN.astype(np.int64)}, TypeError, "attn_mask", "int64", "bool, float32"),
    Bad({"attn_mask": SEEN.astype(np.float64)}, TypeError, "attn_mask", "float64", "bool, float32"),
    Bad({"attn_mask": SEEN.T.copy()}, ValueError, "attn_mask", "(7, 5)", "(2, 3, 5, 7)"),
    Bad(
        {"attn_mask": np.ones((2, 2, 5, 7), bool)},
        ValueError,
        "attn_mask",
        "(2, 2,",
        "(2, 3, 5, 7)",
    ),
    Bad(
        {"attn_mask": np.ones((5, 8), bool)}, ValueError, "attn_mask", "(5, 8)", "broadcastable to"
    ),
    Bad({"attn_mask": np.array(True)}, TypeError, "attn_mask", "0 dimensions", "1 to 4"),
    Bad({"attn_mask": SEEN[None, None, None]}, TypeError, "attn_mask", "5 dimensions", "at most 4"),
    Bad({**LSH, "attn_mask": SEEN}, NotImplementedError, "attn_mask", "lsh", "use method='dense'"),
    *(
        Bad({name: mask}, error, name, given, accepted)
        for name, mask, error, given, accepted in (
            ("key_padding_mask", KEPT.astype(np.uint8), TypeError, "uint8", "bool with True"),
            ("key_padding_mask", KEPT.astype(np.float32), TypeError, "float32", "bool with True"),
            ("key_padding_mask", KEPT[:1], ValueError, "(1, 7)", "(2, 7) = (batch, Nk)"),
            ("key_padding_mask", KEPT[:, :5], ValueError, "(2, 5)", "(2, 7) = (batch, Nk)"),
            ("key_padding_mask", KEPT[:, None], ValueError, "(2, 1, 7)", "(2, 7) = (batch, Nk)"),
            ("query_padding_mask", KEPT, ValueError, "(2, 7)", "(2, 5) = (batch, Nq)"),
            ("query_padding_mask", SEEN[:2], ValueError, "(2, 7)", "(2, 5) = (batch, Nq)"),
        )
    ),
    Bad({"out": normal(2, 3, 5, 5)}, ValueError, "out", "(2, 3, 5, 5)", "(2, 3, 5, 4)"),
    Bad({"out": normal(3, 5, 4)}, TypeError, "out", "(3, 5, 4)", "4: (batch, heads, N,"),
    Bad({"out": normal(2, 3, 5, 4, dtype=np.float64)}, TypeError, "out", "float64", ROWS),
    Bad({"out": normal(2, 3, 5, 4, dtype=np.float16)}, TypeError, "out", "float16", "like query"),
    Bad({"out": normal(2, 3, 5, 8)[..., ::2]}, ValueError, "out", "stride 2", "contiguous copy"),
    Bad({"query": [1.0]}, TypeError, "query", "list", "a NumPy array or a PyTorch tensor"),
    Bad({"query": None}, TypeError, "query", "NoneType", "a NumPy array or a PyTorch tensor"),
    Bad({"query": 1.0}, TypeError, "query", "float", "a NumPy array or a PyTorch tensor"),
    Bad({"key": [[1.0]]}, TypeError, "key", "list", "like query"),
    Bad({"value": None}, TypeError, "value", "NoneType", "like query"),
    Bad({"attn_mask": [[True]]}, TypeError, "attn_mask", "list", "like query"),
    Bad({"key_padding_mask": [[True]]}, TypeError, "key_padding_mask", "list", "like query"),
    Bad({"out": [1.0]}, TypeError, "out", "list", "like query"),
    Bad({"plan": "dense"}, TypeError, "plan", "str", "make one with smyrf.plan"),
]


def name_of(bad: Bad) -> str:
    def short(value: Any) -> str:
        shape = getattr(value, "shape", None)
        return str(value) if shape is None else f"{value.dtype}{list(shape)}"

    return " ".join(f"{name}={short(value)}" for name, value in bad.changes.items())


def check(call: Callable[[], Any], bad: Bad) -> None:
    with pytest.raises(bad.error) as caught:
        call()
    assert type(caught.value) is bad.error
    message = str(caught.value)
    assert message.startswith(f"{bad.argument}: ")
    assert bad.given in message
    assert bad.accepted in message
    assert message.find(bad.given) < message.rfind(bad.accepted)
    assert "\n" not in message
    assert len(message) < 240
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def to_torch(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value)


@pytest.mark.parametrize("bad", BAD_OPTIONS + BAD_ARRAYS, ids=name_of)
def test_numpy(bad: Bad) -> None:
    check(lambda: smyrf.attention(**{**arguments(), **bad.changes}), bad)


@pytest.mark.parametrize("return_stats", [False, True])
@pytest.mark.parametrize("bad", BAD_OPTIONS + BAD_ARRAYS, ids=name_of)
def test_torch(bad: Bad, return_stats: bool) -> None:
    tensors = {name: to_torch(value) for name, value in {**arguments(), **bad.changes}.items()}
    check(lambda: smyrf.attention(**tensors, return_stats=return_stats), bad)


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=name_of)
@pytest.mark.filterwarnings("error")
def test_vmap_says_the_same(bad: Bad) -> None:
    """There a call is one of the operator, whose schema has rules and sentences of its own."""
    tensors = {name: to_torch(value) for name, value in {**arguments(), **bad.changes}.items()}
    query = tensors.pop("query")
    check(lambda: torch.vmap(lambda rows: smyrf.attention(rows, **tensors))(query[None]), bad)


@pytest.mark.parametrize("kind", [np.asarray, to_torch], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "bad",
    [b for b in BAD_OPTIONS + BAD_ARRAYS if not {"value", "out", "plan"} & set(b.changes)],
    ids=name_of,
)
def test_plan_says_the_same(bad: Bad, kind: Callable[[Any], Any]) -> None:
    given = {**arguments(), **bad.changes}
    del given["value"]
    if kind is to_torch:
        given = {name: to_torch(value) for name, value in given.items()}
    check(lambda: smyrf.plan(**given), bad)


@pytest.mark.parametrize(
    "bad",
    [b for b in BAD_OPTIONS + BAD_ARRAYS if not {"out", "num_threads"} & set(b.changes)],
    ids=name_of,
)
def test_reference_says_the_same(bad: Bad) -> None:
    check(lambda: smyrf.reference.attention(**{**arguments(), **bad.changes}), bad)


NATIVE = "on the CPU in native byte order"


@pytest.mark.parametrize(
    "bad",
    [
        Bad({"query": normal(2, 3, 5, 8).astype(">f4")}, TypeError, "query", ">f4", NATIVE),
        Bad({"value": normal(2, 3, 7, 4).astype(">f4")}, TypeError, "value", ">f4", NATIVE),
        Bad({"query": normal(2, 3, 5, 8).astype(object)}, TypeError, "query", "object", NATIVE),
        Bad(
            {"key": normal(2, 3, 7, 8).astype(np.longdouble)}, TypeError, "key", "float128", NATIVE
        ),
        Bad({"key": np.zeros((2, 3, 7, 8), "f4,f4")}, TypeError, "key", "f1", NATIVE),
        Bad({"key": np.zeros((2, 3, 7, 8), "U1")}, TypeError, "key", "U1", NATIVE),
        Bad(
            {"key": np.ma.MaskedArray(normal(2, 3, 7, 8))},
            TypeError,
            "key",
            "masked array",
            "key_padding_mask",
        ),
    ],
    ids=name_of,
)
def test_numpy_memory_that_cannot_be_used(bad: Bad) -> None:
    check(lambda: smyrf.attention(**{**arguments(), **bad.changes}), bad)


def test_memory_that_is_not_aligned_is_refused() -> None:
    given = arguments()
    for name, array in arguments().items():
        raw = np.zeros(array.nbytes + 1, np.uint8)
        crooked = (
            raw[1:].view(np.float32)
            if array.nbytes % 4
            else np.frombuffer(raw.data, np.float32, array.size, 1)
        )
        changed = {**given, name: crooked.reshape(array.shape)}
        bad = Bad({}, ValueError, name, "not aligned", "pass a copy")
        check(lambda changed=changed, bad=bad: smyrf.attention(**changed), bad)


@pytest.mark.parametrize("call", [smyrf.plan, smyrf.estimate])
@pytest.mark.parametrize("kind", [np.asarray, to_torch], ids=["numpy", "torch"])
def test_more_rows_than_any_memory_are_refused(
    call: Callable[..., Any], kind: Callable[[Any], Any]
) -> None:
    row = kind(np.zeros((1, 1, 1, 8), np.float32))
    for shape in ((2**28, 2**25, 1, 8), (2**40, 2, 1, 8), (1, 2**31, 2**20, 8)):
        many = row.expand(shape) if kind is to_torch else np.broadcast_to(row, shape)
        bad = Bad({}, ValueError, "query", str(shape[1]), "pass fewer at a time")
        check(lambda many=many, bad=bad: call(many, many, many), bad)


def test_frameworks_do_not_mix() -> None:
    arrays = arguments()
    arrays |= {"attn_mask": SEEN, "key_padding_mask": KEPT, "out": normal(2, 3, 5, 4)}
    tensors = {name: to_torch(array) for name, array in arrays.items()}
    for name in arrays:
        if name == "query":
            continue
        numpy_but_one = {**arrays, name: tensors[name]}
        bad = Bad({}, TypeError, name, "Tensor", "a NumPy array like query")
        check(lambda given=numpy_but_one, bad=bad: smyrf.attention(**given), bad)
        torch_but_one = {**tensors, name: arrays[name]}
        bad = Bad({}, TypeError, name, "ndarray", "a PyTorch tensor like query")
        check(lambda given=torch_but_one, bad=bad: smyrf.attention(**given), bad)


def test_tensors_on_other_devices_are_refused() -> None:
    tensors = {name: to_torch(array) for name, array in arguments().items()}
    tensors |= {"attn_mask": torch.ones(5, 7, dtype=torch.bool)}
    for name, tensor in tensors.items():
        elsewhere = {**tensors, name: tensor.to("meta")}
        if name == "query":  # the others lie elsewhere then
            bad = Bad({}, TypeError, "key", "cpu, query on meta", "move one of them")
        else:
            bad = Bad({}, TypeError, name, "meta, query on cpu", "move one of them")
        check(lambda given=elsewhere, bad=bad: smyrf.attention(**given), bad)
        bad = Bad({}, TypeError, name, "on meta", "on the CPU; call .cpu()")
        check(lambda given=elsewhere, bad=bad: smyrf.attention(**given, return_stats=True), bad)


def test_sparse_tensors_are_refused() -> None:
    tensors = {name: to_torch(array) for name, array in arguments().items()}
    for name, tensor in tensors.items():
        given = {**tensors, name: tensor.to_sparse()}
        bad = Bad({}, TypeError, name, "sparse_coo", "call .cpu() or .to_dense()")
        check(lambda given=given, bad=bad: smyrf.attention(**given), bad)


def test_out_must_have_memory_of_its_own_that_can_be_written() -> None:
    given = arguments()
    frozen = normal(2, 3, 5, 4)
    frozen.flags.writeable = False
    bad = Bad({}, TypeError, "out", "can't be used as it is", "can be written to")
    check(lambda: smyrf.attention(**given, out=frozen), bad)

    # One piece of memory, in all ways it could be an input too.
    shared = normal(2, 3, 9, 8)
    mask = normal(2, 3, 5, 7)
    for name, changes in {
        "query": {"query": shared[:, :, :5], "value": shared[:, :, :7], "out": shared[:, :, :5]},
        "key": {"key": shared[:, :, 2:], "value": normal(2, 3, 7, 8), "out": shared[:, :, :5]},
        "value": {"value": shared[:, :, 2:], "out": shared[:, :, :5]},
        "attn_mask": {"attn_mask": mask, "value": normal(2, 3, 7, 7), "out": mask},
    }.items():
        before = shared.copy()
        bad = Bad({}, ValueError, "out", f"overlaps the memory of {name}", "of its own")
        check(lambda changes=changes, bad=bad: smyrf.attention(**{**given, **changes}), bad)
        assert (shared == before).all()

    step = np.lib.stride_tricks.as_strided
    buffer = np.zeros(1000, np.float32)
    for strides in ((240, 80, 0, 4), (0, 80, 16, 4), (240, 80, 4, 4), (240, 16, 16, 4)):
        out = step(buffer, (2, 3, 5, 4), strides)
        with pytest.raises(ValueError, match=r"^out: .*overlap each other; pass a tensor"):
            smyrf.attention(**given, out=out)
        tensor_out = torch.as_strided(
            torch.zeros(1000), (2, 3, 5, 4), [stride // 4 for stride in strides]
        )
        tensors = {name: to_torch(array) for name, array in given.items()}
        with pytest.raises(ValueError, match=r"^out: .*overlap each other; pass a tensor"):
            smyrf.attention(**tensors, out=tensor_out)


def test_indices_of_a_plan() -> None:
    given = arguments()
    plan = smyrf.plan(given["query"], given["key"], method="lsh", n_hashes=4, cluster_size=3)
    for argument, size, call in (
        ("round", 4, lambda i: plan.head(i, 0, 0)),
        ("batch", 2, lambda i: plan.head(0, i, 0)),
        ("head", 3, lambda i: plan.head(0, 0, i)),
        ("batch", 2, lambda i: plan.density(i, 0)),
        ("head", 3, lambda i: plan.density(0, i)),
    ):
        for index in (-1, size, 2**40):
            bad = Bad({}, ValueError, argument, str(index), f"0 to {size - 1}")
            check(lambda call=call, index=index: call(index), bad)
    dense = smyrf.plan(given["query"], given["key"])
    with pytest.raises(ValueError, match=r"ranges of a dense plan are implicit"):
        dense.head(0, 0, 0)
    assert dense.density(1, 2) == 1


DIALS = [{}, {"method": "lsh", "cluster_size": 8, "n_hashes": 3}]


@pytest.mark.parametrize("dials", DIALS, ids=["dense", "lsh"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_padded_rows_may_hold_anything(dials: dict[str, Any], poison: float, dtype: Any) -> None:
    query, key, value = (normal(2, 2, 60, 8, dtype=dtype) for _ in range(3))
    keep = RNG.random((2, 60)) < 0.7
    keep_queries = RNG.random((2, 60)) < 0.7
    masks = {"key_padding_mask": keep, "query_padding_mask": keep_queries}
    clean = smyrf.attention(query, key, value, **dials, **masks, return_lse=True)
    for b in range(2):
        query[b, :, ~keep_queries[b]] = poison
        key[b, :, ~keep[b]] = poison
        value[b, :, ~keep[b]] = poison
    out, lse, statistics = smyrf.attention(
        query, key, value, **dials, **masks, return_lse=True, return_stats=True
    )
    np.testing.assert_array_equal(out, clean[0])
    np.testing.assert_array_equal(lse, clean[1])
    assert not statistics.non_finite.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["query", "key"])
def test_lsh_marks_heads_with_rows_that_are_not_finite(which: str, poison: float) -> None:
    arrays = {name: normal(2, 2, 60, 8) for name in ("query", "key", "value")}
    clean = smyrf.attention(**arrays, **DIALS[1], return_lse=True)
    arrays[which][1, 0, 33, 5] = poison
    out, lse, statistics = smyrf.attention(**arrays, **DIALS[1], return_lse=True, return_stats=True)
    assert statistics.non_finite.tolist() == [[False, False], [True, False]]
    assert np.isnan(out[1, 0]).all()
    assert np.isnan(lse[1, 0]).all()
    for b, h in ((0, 0), (0, 1), (1, 1)):
        np.testing.assert_array_equal(out[b, h], clean[0][b, h])
        np.testing.assert_array_equal(lse[b, h], clean[1][b, h])


@pytest.mark.parametrize("queries", [3, 60], ids=["few queries", "many queries"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_dense_passes_nan_to_the_rows_that_see_it(queries: int, poison: float) -> None:
    query, key, value = normal(1, 1, queries, 8), normal(1, 1, 60, 8), normal(1, 1, 60, 8)
    clean = smyrf.attention(query, key, value, is_causal=True)

    poisoned = query.copy()
    poisoned[0, 0, 1, 2] = poison
    out = smyrf.attention(poisoned, key, value, is_causal=True)
    others = np.arange(queries) != 1
    assert np.isnan(out[0, 0, 1]).all()
    np.testing.assert_array_equal(out[0, 0, others], clean[0, 0, others])

    # Key 59 is seen by the last query only, in every tile and vector of lanes.
    for array in (key, value):
        poisoned = array.copy()
        poisoned[0, 0, 59, 2] = poison
        given = (poisoned, value) if array is key else (key, poisoned)
        out = smyrf.attention(query, *given, is_causal=True)
        assert not np.isfinite(out[0, 0, -1]).all() or math.isinf(poison)
        exact = smyrf.reference.attention(query, *given, is_causal=True)
        assert (np.isnan(out) == np.isnan(exact))[0, 0, -1].all()


@pytest.mark.parametrize("dials", DIALS, ids=["dense", "lsh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_bits_end_without_a_crash(dials: dict[str, Any], dtype: Any) -> None:
    bits = {np.float32: np.uint32, np.float16: np.uint16}[dtype]
    for seed in range(40):
        rng = np.random.default_rng(seed)
        arrays = [
            rng.integers(0, np.iinfo(bits).max, size, bits, endpoint=True).view(dtype)
            for size in ((2, 4, 70, 9), (2, 2, 130, 9), (2, 2, 130, 5))
        ]
        out, lse, statistics = smyrf.attention(
            *arrays, enable_gqa=True, **dials, return_lse=True, return_stats=True
        )
        finite = all(np.isfinite(x).all() for x in arrays)
        assert finite or not (np.isfinite(out).all() and np.isfinite(lse).all())
        assert statistics.non_finite.all() or not dials or finite


@pytest.mark.parametrize("size", [1e30, 3e38, 1e-38, 1e-44])
def test_lsh_orders_numbers_whose_squares_overflow_or_vanish(size: float) -> None:
    query, key = normal(1, 1, 64, 8), normal(1, 1, 64, 8)
    largest = np.abs([query, key]).max()
    query, key = (np.float32(size) * (x / largest) for x in (query, key))
    plan = smyrf.plan(query, key, **DIALS[1])
    orders = [plan.head(r, 0, 0)[0] for r in range(3)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert all(order != list(range(64)) for order in orders)
