"""smyrf.attention on NumPy arrays: against float64 within derived bounds, plans, determinism."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import MEMORY, Array, allowed_pairs, assert_close, exact, memory, pair_counts
from hypothesis import given, settings
from hypothesis import strategies as st

import smyrf
from smyrf import _core


def examples(count: int) -> settings:
    """The same examples in every run, however slow the machine."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def random_arrays(
    shape: dict[str, int], seed: int, dtype: Any = np.float32, spread: float = 1.0
) -> tuple[Array, Array, Array]:
    """query, key and value, normal; `spread` decides how sharp the softmax is."""
    rng = np.random.default_rng(seed)
    batch, heads, group = shape["batch"], shape["key_heads"], shape["group"]
    return tuple(
        (factor * rng.standard_normal(size)).astype(dtype)
        for factor, size in (
            (spread, (batch, heads * group, shape["queries"], shape["depth"])),
            (1.0, (batch, heads, shape["keys"], shape["depth"])),
            (1.0, (batch, heads, shape["keys"], shape["value_depth"])),
        )
    )  # type: ignore[return-value]


def plain(batch: int, heads: int, queries: int, keys: int, depth: int, value_depth: int) -> Any:
    return {
        "batch": batch,
        "key_heads": heads,
        "group": 1,
        "queries": queries,
        "keys": keys,
        "depth": depth,
        "value_depth": value_depth,
    }


@st.composite
def calls(draw: st.DrawFn, padding_only: bool = False) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Arrays (B, H, N, D) in any memory, and keywords of a call that takes them."""
    sizes = {"batch": 2, "key_heads": 2, "group": 3, "queries": 90, "keys": 200, "depth": 40}
    shape = {name: draw(st.integers(1, most)) for name, most in sizes.items()}
    shape["value_depth"] = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = random_arrays(
        shape,
        int(rng.integers(2**32)),
        draw(st.sampled_from([np.float32, np.float16])),
        draw(st.sampled_from([0.1, 1.0, 5.0])),
    )
    arrays = tuple(memory(x, draw(st.sampled_from(MEMORY))) for x in arrays)
    batch, queries, keys = shape["batch"], shape["queries"], shape["keys"]
    heads = arrays[0].shape[1]
    options: dict[str, Any] = {"enable_gqa": shape["group"] > 1}
    if draw(st.booleans()):
        options["key_padding_mask"] = rng.random((batch, keys)) < draw(st.sampled_from([0.1, 0.8]))
    if draw(st.booleans()):
        options["query_padding_mask"] = rng.random((batch, queries)) < 0.7
    if padding_only:
        options["scale"] = draw(st.sampled_from([None, 0.3]))
        return arrays, options
    options["scale"] = draw(st.sampled_from([None, 0.3, 0.0, -0.2]))
    options["is_causal"] = draw(st.booleans())
    sides = st.sampled_from([-1, 0, 1, 7, 64, 1000])
    options["window"] = draw(st.none() | st.tuples(sides, sides))
    kind = draw(st.sampled_from([None, bool, np.float32, np.float16]))
    if kind is not None:
        size = draw(
            st.sampled_from(
                [
                    (batch, heads, queries, keys),
                    (batch, 1, queries, 1),
                    (1, heads, 1, keys),
                    (heads, queries, keys),
                    (queries, keys),
                    (1, keys),
                    (keys,),
                ]
            )
        )
        mask = rng.random(size) < 0.7
        if kind is not bool:
            mask = np.where(mask, rng.standard_normal(size), -np.inf).astype(kind)
        options["attn_mask"] = np.asfortranarray(mask) if draw(st.booleans()) else mask
    return arrays, options


def masks_of(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords that `exact` takes."""
    return {name: x for name, x in options.items() if name != "enable_gqa"}


@examples(250)
@given(calls(), st.integers(0, 3), st.booleans())
def test_dense_is_within_its_bound(
    call: tuple[tuple[Array, ...], dict[str, Any]], threads: int, heads_last: bool
) -> None:
    arrays, options = call
    expected = exact(*arrays, **masks_of(options))
    layout = "BNHD" if heads_last else "BHND"
    given_arrays = [x.swapaxes(1, 2) for x in arrays] if heads_last else arrays
    keywords = {**options, "layout": layout}
    out, lse = smyrf.attention(
        *given_arrays, **keywords, method="dense", num_threads=threads, return_lse=True
    )
    assert out.dtype == arrays[0].dtype
    assert lse.dtype == np.float32
    assert_close(out, lse, expected, layout)

    exact_out, exact_lse = smyrf.reference.attention(*given_arrays, **keywords, return_lse=True)
    if heads_last:
        exact_out = exact_out.swapaxes(1, 2)
    # Both in float64: the order of sums is all that differs.
    np.testing.assert_allclose(exact_out, expected.out, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(exact_lse, expected.lse, rtol=1e-11, atol=1e-11)


@examples(120)
@given(calls(padding_only=True), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_lsh_computes_its_plan_and_the_plan_is_balanced(
    call: tuple[tuple[Array, ...], dict[str, Any]], n_hashes: int, cluster_size: int, seed: int
) -> None:
    (query, key, value), options = call
    dials = {"method": "lsh", "n_hashes": n_hashes, "cluster_size": cluster_size, "seed": seed}
    # Small calls: waking threads would take most of the time.
    plan = smyrf.plan(query, key, **options, **dials, num_threads=1)
    assert (plan.method, plan.n_hashes, plan.cluster_size, plan.seed) == tuple(dials.values())
    check_plan(plan, options)

    counts = pair_counts(plan)
    out, lse, statistics = smyrf.attention(
        query, key, value, **options, **dials, num_threads=1, return_lse=True, return_stats=True
    )
    expected = exact(query, key, value, counts=counts, merges=n_hashes - 1, **masks_of(options))
    assert_close(out, lse, expected)
    exact_out, exact_lse = smyrf.reference.attention(
        query, key, value, **options, **dials, return_lse=True
    )
    np.testing.assert_allclose(exact_out, expected.out, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(exact_lse, expected.lse, rtol=1e-11, atol=1e-11)

    allowed, _ = allowed_pairs(counts.shape, **{n: x for n, x in options.items() if "padding" in n})
    pairs = allowed.sum(axis=(2, 3))
    density = np.where(pairs > 0, counts.sum(axis=(2, 3)) / np.maximum(pairs, 1), 1.0)
    np.testing.assert_allclose(statistics.density, density, rtol=1e-12)
    heads = itertools.product(range(plan.batch), range(plan.query_heads))
    assert [plan.density(b, h) for b, h in heads] == statistics.density.ravel().tolist()


def check_plan(plan: smyrf.Plan, options: dict[str, Any]) -> None:
    """In each round every valid query and key in exactly one cluster; sizes differ by at most 1."""

    def valid(side: str, b: int, count: int) -> list[int]:
        mask = options.get(f"{side}_padding_mask")
        return list(range(count)) if mask is None else np.flatnonzero(mask[b]).tolist()

    for b, h in itertools.product(range(plan.batch), range(plan.query_heads)):
        queries, keys = valid("query", b, plan.queries), valid("key", b, plan.keys)
        least = min(len(queries), len(keys))
        wanted = math.floor(len(keys) / plan.cluster_size + 0.5)
        clusters = min(max(1, wanted), least)
        rounds = [plan.head(r, b, h) for r in range(plan.n_hashes)]
        if clusters <= 1:
            # Dense, done once.
            done = [([], [], [])] * plan.n_hashes
            if clusters == 1:
                done[0] = (queries, keys, [(0, len(queries), [(0, len(keys), False)])])
            assert rounds == done
            continue
        for query_order, key_order, blocks in rounds:
            assert sorted(query_order) == queries
            assert sorted(key_order) == keys
            assert len(blocks) == clusters
            begins, ends, ranges = zip(*blocks, strict=True)
            assert all(len(r) == 1 and not r[0][2] for r in ranges)
            key_begins, key_ends, _ = zip(*(r[0] for r in ranges), strict=True)
            for starts, stops, count in (
                (begins, ends, len(queries)),
                (key_begins, key_ends, len(keys)),
            ):
                assert starts == (0, *stops[:-1])
                assert stops[-1] == count
                sizes = np.subtract(stops, starts)
                assert sizes.min() >= 1
                assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    "shape",
    [
        plain(1, 1, 1, 1, 1, 1),
        plain(1, 1, 1, 9000, 64, 64),
        plain(2, 2, 3, 5000, 80, 24),
        plain(1, 1, 64, 4500, 16, 16),
        plain(1, 1, 65, 300, 512, 512),
        plain(1, 2, 257, 129, 33, 65),
        plain(1, 1, 700, 700, 64, 64),
    ],
    ids=lambda shape: "x".join(str(x) for x in shape.values()),
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shapes_that_split_tiles_or_keys(shape: dict[str, int], dtype: Any) -> None:
    arrays = random_arrays(shape, 1, dtype, 2.0)
    merges = shape["keys"] // 1024  # keys of few queries are computed in parts
    for options in ({}, {"is_causal": True}, {"window": (100, 3)}):
        out, lse = smyrf.attention(*arrays, **options, return_lse=True)
        assert_close(out, lse, exact(*arrays, merges=merges, **options))


def test_a_row_masked_by_the_most_negative_number_is_uniform() -> None:
    """What transformers' additive masks hold: such a row is not one that sees nothing."""
    query, key, value = random_arrays(plain(1, 1, 6, 50, 8, 8), 0)
    mask = np.zeros((6, 50), np.float32)
    mask[2], mask[3, :40] = np.finfo(np.float32).min, np.finfo(np.float32).min
    out = smyrf.attention(query, key, value, mask)
    np.testing.assert_allclose(out[0, 0, 2], value[0, 0].mean(0), atol=1e-6)
    few = smyrf.attention(query[:, :, 3:4], key[:, :, 40:], value[:, :, 40:])
    np.testing.assert_allclose(out[0, 0, 3], few[0, 0, 0], atol=1e-6)


def test_causal_is_aligned_to_the_lower_right() -> None:
    query, key, value = random_arrays(plain(1, 1, 3, 5, 4, 5), 0)
    value[:] = np.eye(5)
    weights = smyrf.attention(query, key, value, is_causal=True)[0, 0]
    assert ((weights > 0) == np.tri(3, 5, 2, bool)).all()
    weights = smyrf.attention(key, query, value[:, :, :3], is_causal=True)[0, 0]
    assert ((weights[:, :3] > 0) == np.tri(5, 3, -2, bool)).all()


def test_what_is_returned_and_in_which_order() -> None:
    arrays = random_arrays(plain(2, 3, 4, 7, 8, 5), 0)
    out = smyrf.attention(*arrays)
    assert out.shape == (2, 3, 4, 5)
    pair = smyrf.attention(*arrays, return_lse=True)
    triple = smyrf.attention(*arrays, return_lse=True, return_stats=True)
    both = smyrf.attention(*arrays, return_stats=True)
    assert [len(x) for x in (pair, triple, both)] == [2, 3, 2]
    assert (pair[1] == triple[1]).all()
    for statistics in (triple[2], both[1]):
        assert isinstance(statistics, smyrf.Statistics)
        assert statistics.method == "dense"
        assert "auto" in statistics.reason
        assert (statistics.density == 1).all()
        assert statistics.density.shape == statistics.seconds.shape == (2, 3)
        assert not statistics.non_finite.any()
        assert (statistics.seconds > 0).all()
        assert statistics.execution_seconds > 0
        assert "Statistics: dense (auto: " in repr(statistics)
        assert "6 heads, mean density 1, planning" in repr(statistics)
    lsh = smyrf.attention(*arrays, method="lsh", cluster_size=3, return_stats=True)[1]
    assert (lsh.method, lsh.reason) == ("lsh", "asked for")
    assert not lsh.dense_heads.any()


def test_layouts_agree_and_lse_keeps_its_own() -> None:
    arrays = random_arrays(plain(2, 3, 70, 90, 8, 5), 0)
    out, lse = smyrf.attention(*arrays, return_lse=True)
    turned = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays]
    turned_out, turned_lse = smyrf.attention(*turned, layout="BNHD", return_lse=True)
    assert turned_out.shape == (2, 70, 3, 5)
    assert (turned_out.swapaxes(1, 2) == out).all()
    assert (turned_lse == lse).all()


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("dials", [{}, {"method": "lsh", "cluster_size": 16}])
def test_out_is_written_in_place_and_nothing_beside_it(kind: str, dials: dict[str, Any]) -> None:
    arrays = random_arrays(plain(2, 2, 70, 90, 8, 5), 0, np.float16)
    expected = smyrf.attention(*arrays, **dials)
    out = memory(np.full_like(expected, 7), kind)
    base = out if out.base is None else out.base
    before = base.copy()
    assert smyrf.attention(*arrays, **dials, out=out) is out
    assert (out == expected).all()
    out[...] = 7
    np.testing.assert_array_equal(base, before)


def test_broadcast_inputs_are_taken_as_they_are() -> None:
    query, key, value = random_arrays(plain(1, 1, 70, 90, 8, 5), 0)
    wide = [np.broadcast_to(x, (3, 4, *x.shape[2:])) for x in (query, key, value)]
    for dials in ({}, {"method": "lsh", "cluster_size": 16}):
        out = smyrf.attention(*wide, **dials)
        assert (out == smyrf.attention(query, key, value, **dials)).all()


@examples(60)
@given(calls(), st.booleans())
def test_a_plan_carried_out_has_the_same_bits(
    call: tuple[tuple[Array, ...], dict[str, Any]], with_lsh: bool
) -> None:
    arrays, options = call
    if with_lsh:
        masks = ("attn_mask", "is_causal", "window")
        options = {name: x for name, x in options.items() if name not in masks}
        options |= {"method": "lsh", "n_hashes": 2, "cluster_size": 9, "seed": 3, "scale": 0.5}
    direct = smyrf.attention(*arrays, **options, return_lse=True)
    plan = smyrf.plan(*arrays[:2], **options)
    rest = {n: x for n, x in options.items() if n in ("attn_mask", "scale", "enable_gqa")}
    for keywords in (rest, options):  # what the plan holds may be left out, or repeated
        out, lse, statistics = smyrf.attention(
            *arrays, **keywords, plan=plan, return_lse=True, return_stats=True
        )
        assert out.tobytes() == direct[0].tobytes()
        assert lse.tobytes() == direct[1].tobytes()
        assert statistics.planning_seconds == 0


def test_a_plan_for_another_call_is_refused() -> None:
    query, key, value = random_arrays(plain(2, 2, 40, 60, 8, 8), 0)
    padding = np.arange(60) < [[50], [60]]
    plan = smyrf.plan(query, key, method="lsh", cluster_size=8, key_padding_mask=padding)
    for differs, keywords in {
        "n_hashes": {"n_hashes": 3},
        "cluster_size": {"cluster_size": 9},
        "seed": {"seed": 1},
        "method": {"method": "dense"},
        "is_causal": {"is_causal": True},
        "window": {"window": (3, 3)},
        "key_padding_mask": {"key_padding_mask": ~padding},
        "query_padding_mask": {"query_padding_mask": np.arange(40) < [[30], [40]]},
        "scale": {"scale": -1.0},
    }.items():
        with pytest.raises(ValueError, match=f"^{differs}: .*plan"):
            smyrf.attention(query, key, value, plan=plan, **keywords)
    with pytest.raises(NotImplementedError, match=r"^attn_mask: .*plan"):
        smyrf.attention(query, key, value, np.ones((40, 60), bool), plan=plan)
    for name, arrays in {
        "batch": [x[:1] for x in (query, key, value)],
        "query heads": [x[:, :1] for x in (query, key, value)],
        "Nq": [query[:, :, :30], key, value],
        "Nk": [query, key[:, :, :50], value[:, :, :50]],
        "D": [query[..., :4], key[..., :4], value],
    }.items():
        with pytest.raises(ValueError, match=f"^plan: was made for {name} = .*make a plan"):
            smyrf.attention(*arrays, plan=plan)


def test_seeds_and_rounds_decide_and_the_batch_index_does_not() -> None:
    query, key, _ = random_arrays(plain(3, 2, 100, 120, 16, 16), 0)
    dials = {"method": "lsh", "n_hashes": 3, "cluster_size": 16}
    padding = np.random.default_rng(0).random((3, 120)) < 0.8
    plan = smyrf.plan(query, key, **dials, key_padding_mask=padding)
    alone = smyrf.plan(query[1:2], key[1:2], **dials, key_padding_mask=padding[1:2])
    for r, h in itertools.product(range(3), range(2)):
        assert plan.head(r, 1, h) == alone.head(r, 0, h)
    rounds = [plan.head(r, 0, 0)[0] for r in range(3)]
    assert len({tuple(order) for order in rounds}) == 3
    other = smyrf.plan(query, key, **dials, key_padding_mask=padding, seed=1)
    assert other.head(0, 0, 0)[0] != rounds[0]
    # More rounds begin with the same ones.
    more = smyrf.plan(query, key, **{**dials, "n_hashes": 4}, key_padding_mask=padding)
    assert more.head(2, 0, 0) == plan.head(2, 0, 0)
    # The order does not depend on the unit of q and k.
    scaled = smyrf.plan(query * 2**-70, key * 2**-70, **dials, key_padding_mask=padding)
    assert scaled.head(1, 2, 1) == plan.head(1, 2, 1)


def test_the_hash_is_the_papers() -> None:
    """On a line of points at r the hash is r a + sqrt(M^2 - r^2) b = M cos(angle(r) - phase).

    M^2 is the largest squared length of a query plus that of a key; `a` is one direction for both
    sides and `b` one for each, so the two orders differ where the points are the same.
    """
    rows = 60
    line = np.zeros((1, 1, rows, 5), np.float32)
    line[..., 2] = np.random.default_rng(0).random(rows)
    radius = line[0, 0, :, 2].astype(np.float64)
    angle = np.arccos(radius / (2**0.5 * radius.max()))
    phases = np.linspace(0, 2 * np.pi, 20001)
    ranks = np.cos(angle - phases[:, None]).argsort(axis=1).argsort(axis=1)
    plan = smyrf.plan(line, line, method="lsh", n_hashes=64, cluster_size=6)
    rounds = [plan.head(r, 0, 0) for r in range(64)]
    for query_order, key_order, _ in rounds:
        for order in (query_order, key_order):
            # Between two phases of the grid a few neighbours may change places.
            assert abs(ranks - np.argsort(order)).max(axis=1).min() <= 1
    assert sum(query_order != key_order for query_order, key_order, _ in rounds) > 16
    # Orders that are no longer sorted by r are those that say what M is.
    by_radius = radius.argsort().tolist()
    bent = [order not in (by_radius, by_radius[::-1]) for order, _, _ in rounds]
    assert sum(bent) > 8


def test_one_cluster_is_dense() -> None:
    arrays = random_arrays(plain(2, 2, 50, 60, 8, 8), 0)
    for cluster_size in (41, 60, 1000):
        out, lse, statistics = smyrf.attention(
            *arrays,
            method="lsh",
            n_hashes=5,
            cluster_size=cluster_size,
            return_lse=True,
            return_stats=True,
        )
        dense, dense_lse = smyrf.attention(*arrays, return_lse=True)
        assert (out == dense).all()
        assert (lse == dense_lse).all()
        assert statistics.dense_heads.all()
        assert (statistics.density == 1).all()
    # 60 / 40 rounds to 2.
    statistics = smyrf.attention(*arrays, method="lsh", cluster_size=40, return_stats=True)[1]
    assert not statistics.dense_heads.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "shape",
    [plain(2, 2, 300, 310, 24, 40), plain(1, 1, 1, 9000, 64, 64), plain(1, 2, 40, 5000, 8, 8)],
    ids=["many", "one query", "split keys"],
)
def test_the_same_bits_for_any_number_of_threads(shape: dict[str, int], dtype: Any) -> None:
    arrays = random_arrays(shape, 0, dtype)
    padding = np.random.default_rng(0).random((shape["batch"], shape["keys"])) < 0.8
    for options in (
        {},
        {"is_causal": True, "key_padding_mask": padding},
        {"method": "lsh", "n_hashes": 3, "key_padding_mask": padding},
    ):
        results = [
            smyrf.attention(*arrays, **options, num_threads=n, return_lse=True) for n in (1, 2, 3)
        ]
        bits = {(out.tobytes(), lse.tobytes()) for out, lse in results}
        assert len(bits) == 1


@pytest.fixture
def best_instruction_set_afterwards() -> Iterator[None]:
    yield
    _core.force_instruction_set("")


@pytest.mark.usefixtures("best_instruction_set_afterwards")
@pytest.mark.parametrize("name", _core.instruction_sets())
def test_every_instruction_set_is_within_the_bound(name: str) -> None:
    _core.force_instruction_set(name)
    for dtype, spread in itertools.product((np.float32, np.float16), (1.0, 5.0)):
        arrays = random_arrays(plain(1, 2, 133, 259, 37, 21), 0, dtype, spread)
        expected = exact(*arrays, is_causal=True)
        out, lse, statistics = smyrf.attention(
            *arrays, is_causal=True, return_lse=True, return_stats=True
        )
        assert statistics.instruction_set == name
        assert_close(out, lse, expected)
        dials = {"method": "lsh", "n_hashes": 3, "cluster_size": 20}
        plan = smyrf.plan(*arrays[:2], **dials)
        out, lse = smyrf.attention(*arrays, plan=plan, return_lse=True)
        assert_close(out, lse, exact(*arrays, counts=pair_counts(plan), merges=2))


def test_padded_entries_of_a_batch_equal_entries_alone() -> None:
    """Where the contract promises it: left-padded, not causal, or equal padding of q and k."""
    query, key, value = random_arrays(plain(2, 2, 60, 60, 16, 16), 0)
    lengths = (60, 43)
    right = np.arange(60) < np.array(lengths)[:, None]
    for valid, options in (
        (right, {}),
        (right, {"is_causal": True}),
        (right[:, ::-1], {"is_causal": True}),
        (right[:, ::-1], {"window": (9, 2)}),
        (right, {"method": "lsh", "cluster_size": 8, "n_hashes": 3}),
    ):
        out, lse = smyrf.attention(
            query,
            key,
            value,
            **options,
            key_padding_mask=valid,
            query_padding_mask=valid,
            return_lse=True,
        )
        for b, rows in enumerate(valid):
            part = [x[b : b + 1, :, rows] for x in (query, key, value)]
            alone, alone_lse = smyrf.attention(*part, **options, return_lse=True)
            np.testing.assert_allclose(out[b, :, rows], alone[0].swapaxes(0, 1), atol=3e-6)
            np.testing.assert_allclose(lse[b][:, rows], alone_lse[0], atol=3e-6)
            assert (out[b][:, ~rows] == 0).all()
            assert np.isneginf(lse[b][:, ~rows]).all()


@pytest.mark.parametrize("dials", [{}, {"method": "lsh"}], ids=["dense", "lsh"])
def test_no_queries_no_keys_no_batch(dials: dict[str, Any]) -> None:
    query, key, value = random_arrays(plain(2, 3, 5, 7, 8, 4), 0)
    for arrays, shape in (
        ((query[:, :, :0], key, value), (2, 3, 0, 4)),
        ((query[:0], key[:0], value[:0]), (0, 3, 5, 4)),
        ((query[:, :0], key[:, :0], value[:, :0]), (2, 0, 5, 4)),
        ((query[:, :, :0], key[:, :, :0], value[:, :, :0]), (2, 3, 0, 4)),
    ):
        out, lse, statistics = smyrf.attention(*arrays, **dials, return_lse=True, return_stats=True)
        assert out.shape == shape
        assert lse.shape == shape[:3]
        assert statistics.density.shape == shape[:2]
        assert smyrf.reference.attention(*arrays, **dials).shape == shape
    out, lse = smyrf.attention(query, key[:, :, :0], value[:, :, :0], **dials, return_lse=True)
    assert (out == 0).all()
    assert out.shape == (2, 3, 5, 4)
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("bias", [float(np.finfo(np.float32).min), -1e9, 1e9])
@pytest.mark.parametrize("queries", [1, 5, 64])
@pytest.mark.parametrize("keys", [2049, 4097])
def test_parts_of_a_long_cache_weigh_by_their_keys(bias: float, queries: int, keys: int) -> None:
    """Few queries split the keys: a part of 2048 keys and one of a single key are no equals."""
    rng = np.random.default_rng(0)
    query, key = (np.zeros((1, 1, n, 8), np.float32) for n in (queries, keys))
    value = rng.standard_normal((1, 1, keys, 8)).astype(np.float32)
    value[:, :, 2048:] += 10
    mask = np.full((1, 1, queries, keys), bias, np.float32)
    out = smyrf.attention(query, key, value, mask)
    np.testing.assert_allclose(out[0, 0], np.tile(value[0, 0].mean(0), (queries, 1)), atol=1e-4)


def test_a_plan_made_with_a_mask_asks_for_it() -> None:
    """Plans hold no mask; dropping it would be silent."""
    line = np.ones((1, 1, 6, 4), np.float32)
    mask = np.eye(6, dtype=bool)
    masked = smyrf.plan(line, line, attn_mask=mask)
    assert smyrf.attention(line, line, line, mask, plan=masked).shape == line.shape
    with pytest.raises(ValueError, match="attn_mask: the plan was made with one"):
        smyrf.attention(line, line, line, plan=masked)
    with pytest.raises(ValueError, match="attn_mask: the plan was made without one"):
        smyrf.attention(line, line, line, mask, plan=smyrf.plan(line, line))
