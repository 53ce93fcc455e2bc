"""Method `lsh` on NumPy arrays: its plan, its hash, and its results within derived bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from cases import (
    Array,
    allowed_pairs,
    assert_close,
    calls,
    exact,
    examples,
    masks_of,
    pair_counts,
    plain,
    random_arrays,
)
from hypothesis import given
from hypothesis import strategies as st

import smyrf


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
