"""`tree`: the dial on real heads, both ends of it, and what calls refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import Array
from test_real_heads import HEADS, head

import smyrf
from smyrf.collector import relative_error

TOLERANCES = (0.05, 0.1, 0.2)


def errors(arrays: tuple[Array, Array, Array], **dials: Any) -> tuple[float, float, float]:
    """Relative error of out, RMS error of lse in nats, density."""
    expected, expected_lse = smyrf.attention(*arrays, method="dense", return_lse=True)
    out, lse, statistics = smyrf.attention(
        *arrays, method="tree", return_lse=True, return_stats=True, **dials
    )
    error = relative_error(out, expected, arrays[2])[0, 0]
    return (
        float(error),
        float(np.sqrt(np.mean((lse - expected_lse) ** 2))),
        float(statistics.density[0, 0]),
    )


# On this head four of 2048 queries hold most of the error, and 128 sampled rows can miss them all.
MISSED = pytest.mark.xfail(reason="errors of up to 2.5 x the tolerance were measured", strict=False)
MOST_HEADS = [pytest.param(name, marks=MISSED if name == "smollm2-18-8" else ()) for name in HEADS]


@pytest.mark.parametrize("name", MOST_HEADS)
def test_the_dial(name: str) -> None:
    """Approximate: the tolerance is met, or nearly; a dial that costs too much would show too."""
    for tolerance in TOLERANCES:
        found = [errors(head(name), tolerance=tolerance, seed=seed) for seed in range(3)]
        assert max(error for error, _, _ in found) < 1.5 * tolerance
        assert np.median([error for error, _, _ in found]) <= 1.1 * tolerance
        assert np.median([lse for _, lse, _ in found]) <= tolerance
        opened = [error for error, _, density in found if density < 1]  # the others went dense
        assert not opened or np.median(opened) > 0.2 * tolerance


def test_it_skips_most_pairs_where_heads_are_easy() -> None:
    """Approximate: densities at tolerance .1, a quarter above what was measured."""
    for name, most in (("smollm2-7-2", 0.052), ("minilm-4-0", 0.33), ("whisper-0-5", 0.055)):
        found = [errors(head(name), tolerance=0.1, seed=seed)[2] for seed in range(3)]
        assert np.mean(found) < most  # one seed's may be half as much again


@pytest.mark.parametrize("name", ["minilm-5-6", "smollm2-18-8"])
def test_it_is_far_closer_than_lsh_at_a_quarter_of_the_pairs(name: str) -> None:
    """Relative: the heads that the paper's method finds hardest."""
    arrays = head(name)
    expected = smyrf.attention(*arrays, method="dense")
    dials = {"n_hashes": round(0.25 * arrays[1].shape[2] / 32), "cluster_size": 32}
    lsh = smyrf.attention(*arrays, method="lsh", **dials)
    theirs = float(relative_error(lsh, expected, arrays[2])[0, 0])
    ours, _, density = errors(arrays, tolerance=0.3, max_density=0.25)
    assert density < 0.3
    assert ours < 0.5 * theirs


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_keys_does_not_matter(name: str, tolerance: float) -> None:
    """Exact at 0, else approximate: both orders meet the dial as test_the_dial has it."""
    query, key, value = head(name)
    order = np.random.default_rng(0).permutation(key.shape[2])
    for keys in (slice(None), order):
        arrays = (query, key[:, :, keys].copy(), value[:, :, keys].copy())
        error, lse, density = errors(arrays, tolerance=tolerance)
        assert error <= max(1e-6, 1.5 * tolerance)
        assert lse <= max(1e-5, 1.5 * tolerance)
        assert density == 1 or tolerance > 0


@pytest.mark.parametrize("name", HEADS)
def test_density_falls_as_the_tolerance_grows(name: str) -> None:
    densities = [errors(head(name), tolerance=tolerance)[2] for tolerance in TOLERANCES]
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] < 1


@pytest.mark.parametrize("name", MOST_HEADS)
def test_the_error_is_no_more_than_twice_what_was_expected(name: str) -> None:
    arrays = head(name)
    expected, expected_lse = smyrf.attention(*arrays, method="dense", return_lse=True)
    for tolerance in TOLERANCES:
        out, lse, statistics = smyrf.attention(
            *arrays, method="tree", tolerance=tolerance, return_lse=True, return_stats=True
        )
        error = relative_error(out, expected, arrays[2])[0, 0]
        of_lse = np.sqrt(np.mean((lse - expected_lse) ** 2))
        if statistics.dense_heads[0, 0] and statistics.precision[0][0] == "float32":
            assert error < 1e-5
        else:
            assert 0.5 * error < statistics.expected_error[0, 0] <= tolerance
            assert 0.5 * of_lse < statistics.expected_lse_error[0, 0] <= tolerance


def test_statistics_say_what_was_done() -> None:
    arrays = head("smollm2-7-2")
    statistics = smyrf.attention(*arrays, method="tree", tolerance=0.2, return_stats=True)[1]
    assert statistics.method == "tree"
    for name in ("density", "expected_error", "expected_lse_error", "head_planning_seconds"):
        value = getattr(statistics, name)
        assert value.shape == (1, 1)
        assert 0 < value[0, 0] < 1
    assert not statistics.dense_heads.any()
    hard = smyrf.attention(*head("minilm-5-6"), method="tree", tolerance=0.001, return_stats=True)
    assert hard[1].dense_heads.all()
    assert hard[1].density[0, 0] == 1
    assert "1 of 1 heads done as dense" in hard[1].reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_plans_and_layouts(dtype: torch.dtype) -> None:
    query, key, value = (torch.from_numpy(x).to(dtype) for x in head("smollm2-7-2"))
    dials: dict[str, Any] = {"method": "tree", "tolerance": 0.2}
    out = smyrf.attention(query, key, value, **dials)
    heads_last = [x.transpose(1, 2).contiguous() for x in (query, key, value)]
    other = smyrf.attention(*heads_last, layout="BNHD", **dials)
    assert torch.equal(other.transpose(1, 2), out)
    plan = smyrf.plan(query, key, value=value, **dials)
    assert plan.method == "tree"
    planned = smyrf.attention(query, key, value, plan=plan)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(planned, out, rtol=tolerance, atol=tolerance)
    key_order, sinks, nodes = plan.tree(0, 0)
    assert sorted(key_order) == list(range(key.shape[2]))
    assert len(plan.nodes(0, 0)) == len(plan.head(0, 0, 0)[2])
    assert nodes[0][0] == sinks


@pytest.mark.parametrize(
    ("dials", "error", "says"),
    [
        ({"tolerance": -0.1}, ValueError, "tolerance: got -0.1"),
        ({"tolerance": 1.0}, ValueError, "tolerance: got 1"),
        ({"tolerance": float("nan")}, ValueError, "tolerance: got nan"),
        ({"tolerance": "x"}, TypeError, "tolerance: got 'x'"),
        ({"max_density": 0.0}, ValueError, "max_density: got 0"),
        ({"max_density": 2.0}, ValueError, "max_density: got 2"),
        ({"n_hashes": 4}, ValueError, "n_hashes: is a dial of method lsh"),
        ({"is_causal": True}, NotImplementedError, "is_causal: method tree"),
        ({"window": (3, 3)}, NotImplementedError, "window: method tree"),
        ({"attn_mask": np.ones((4, 9), bool)}, NotImplementedError, "attn_mask: method tree"),
        ({"dropout_p": 0.1}, NotImplementedError, "dropout_p: got 0.1, but method tree has no"),
        ({"method": "dense", "tolerance": 0.1}, ValueError, "tolerance: is a dial of method tree"),
        ({"method": "lsh", "max_density": 0.1}, ValueError, "max_density: is a dial of method"),
    ],
    ids=str,
)
def test_what_it_refuses(dials: dict[str, Any], error: type[Exception], says: str) -> None:
    arrays = [np.ones((1, 1, n, 8), np.float32) for n in (4, 9, 9)]
    with pytest.raises(error, match=says.replace("(", r"\(")):
        smyrf.attention(*arrays, **{"method": "tree", **dials})


def test_plans_are_made_from_values_and_for_a_scale() -> None:
    query, key, value = head("minilm-4-0")
    with pytest.raises(ValueError, match="value: method tree plans"):
        smyrf.plan(query, key, method="tree")
    plan = smyrf.plan(query, key, value=value, method="tree", tolerance=0.2)
    plan_of_half = smyrf.plan(query, key, value=value, method="tree", scale=0.5)
    for near in (0.25, math.nextafter(0.5, 1.0)):  # told apart by the message, too
        with pytest.raises(ValueError, match=f"made for scale = 0.5, this call has {near!r}; make"):
            smyrf.attention(query, key, value, plan=plan_of_half, scale=near)
    with pytest.raises(ValueError, match="tolerance: differs from the plan's"):
        smyrf.attention(query, key, value, plan=plan, tolerance=0.1)


def smooth(batch: int = 2, heads: int = 4, key_heads: int = 2) -> tuple[Array, Array, Array]:
    """Points of a plane with values that are a smooth function of them: few summaries do."""
    rng = np.random.default_rng(3)
    plane, waves = rng.standard_normal((2, 32)), rng.standard_normal((2, 16))
    of_query = rng.standard_normal((batch, heads, 200, 2))
    of_key = rng.standard_normal((batch, key_heads, 700, 2))
    result = of_query @ plane, of_key @ plane, 1 + np.sin(of_key @ waves)
    return tuple(x.astype(np.float32) for x in result)  # type: ignore[return-value]


GQA: dict[str, Any] = {"method": "tree", "enable_gqa": True}


def test_statistics_say_which_heads_were_done_as_dense_and_why() -> None:
    query, key, value = smooth()
    rng = np.random.default_rng(4)
    for array in (query, key, value):
        array[1] = rng.standard_normal(array[1].shape)
    out, lse, statistics = smyrf.attention(
        query,
        key,
        value,
        **GQA,
        tolerance=0.01,
        precision="float32",
        return_lse=True,
        return_stats=True,
    )
    assert statistics.dense_heads.tolist() == [[False] * 4, [True] * 4]
    assert (statistics.density[1] == 1).all()
    assert (statistics.expected_error[1] == 0).all()
    assert (statistics.expected_lse_error[1] == 0).all()
    assert ((statistics.density[0] > 0) & (statistics.density[0] < 1)).all()
    assert "4 of 8 heads done as dense" in statistics.reason
    exact, exact_lse = smyrf.attention(
        query, key, value, method="dense", enable_gqa=True, return_lse=True
    )
    np.testing.assert_array_equal(out[1], exact[1])
    np.testing.assert_array_equal(lse[1], exact_lse[1])


def test_a_plan_gives_what_its_call_and_the_reference_do() -> None:
    query, key, value = smooth()
    plan = smyrf.plan(query, key, value=value, **GQA, tolerance=0.1)
    given: dict[str, Any] = {"enable_gqa": True, "plan": plan, "return_lse": True}
    out, lse, statistics = smyrf.attention(query, key, value, **given, return_stats=True)
    direct, direct_lse = smyrf.attention(query, key, value, **GQA, tolerance=0.1, return_lse=True)
    np.testing.assert_allclose(out, direct, rtol=0, atol=1e-5)
    np.testing.assert_allclose(lse, direct_lse, rtol=0, atol=1e-5)
    exact, exact_lse = smyrf.reference.attention(query, key, value, **given)
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-4)
    np.testing.assert_allclose(lse, exact_lse, rtol=0, atol=1e-4)
    for b, h in np.ndindex(2, 4):
        assert plan.density(b, h) == pytest.approx(statistics.density[b, h], rel=1e-12)
    assert not statistics.head_planning_seconds.any()


def test_a_plan_gives_the_constants_of_its_summaries() -> None:
    """Relative: as many coordinates as D hold every logit; and what raises."""
    query, key, value = head("minilm-4-0")
    plan = smyrf.plan(query, key, value=value, method="tree", tolerance=0.2)
    query_basis, key_basis, directions, profiles = plan.tree_constants(0, 0)
    assert query_basis.dtype == key_basis.dtype == directions.dtype == np.float32
    assert query_basis.shape == key_basis.shape == (32, 32)
    assert directions.shape == (len(plan.tree(0, 0)[2]), 32)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    assert profiles.shape[1] == 32
    np.testing.assert_allclose(profiles.sum(1), 1, rtol=1e-5)
    logits = query[0, 0] @ key[0, 0].T
    of_coordinates = (query[0, 0] @ query_basis) @ (key[0, 0] @ key_basis).T
    assert np.linalg.norm(of_coordinates - logits) < 1e-5 * np.linalg.norm(logits)
    assert abs(query_basis @ key_basis.T - query_basis @ query_basis.T).max() > 0.1
    directions[:] = 0  # a copy
    assert plan.tree_constants(0, 0)[2].any()
    with pytest.raises(ValueError, match="key_head: got 1, expected 0 to 0"):
        plan.tree_constants(0, 1)
    dense = smyrf.plan(query, key, method="dense")
    with pytest.raises(ValueError, match="tree_constants: the plan's method has no key"):
        dense.tree_constants(0, 0)


def test_a_plan_tells_its_masks_and_heads() -> None:
    query, key, value = smooth()
    valid = np.arange(700) < np.array([[700], [500]])
    query[0, 1, 3] = np.inf
    plan = smyrf.plan(query, key, value=value, **GQA, tolerance=0, key_padding_mask=valid)
    assert (plan.valid_keys == valid).all()
    assert plan.valid_queries.shape == (2, 200)
    assert plan.valid_queries.all()
    assert (plan.window, plan.is_causal) == (None, False)
    expected = np.zeros((2, 4), bool)
    expected[0, 1] = True
    assert (plan.non_finite == expected).all()
    assert (plan.dense_heads == ~expected).all()
    causal = smyrf.plan(query, key, enable_gqa=True, method="dense", is_causal=True, window=(4, -1))
    assert (causal.window, causal.is_causal) == ((4, -1), True)
    assert not causal.dense_heads.any()


@pytest.mark.parametrize(
    ("name", "given"),
    [("tolerance", 0.2), ("max_density", 0.5), ("seed", 5), ("method", "lsh")],
)
def test_arguments_that_differ_from_the_plan_raise(name: str, given: Any) -> None:
    query, key, value = smooth(1, 1, 1)
    plan = smyrf.plan(query, key, value=value, method="tree", tolerance=0.1)
    with pytest.raises(ValueError, match=f"{name}: differs from the plan's"):
        smyrf.attention(query, key, value, plan=plan, **{name: given})


@pytest.mark.parametrize(
    ("name", "given"),
    [("is_causal", True), ("window", (3, 0)), ("attn_mask", np.ones((200, 700), bool))],
    ids=["is_causal", "window", "attn_mask"],
)
def test_masks_with_a_plan_raise(name: str, given: Any) -> None:
    query, key, value = smooth(1, 1, 1)
    plan = smyrf.plan(query, key, value=value, method="tree")
    with pytest.raises((NotImplementedError, ValueError), match=f"{name}: "):
        smyrf.attention(query, key, value, plan=plan, **{name: given})


@pytest.mark.parametrize("name", ["tolerance", "max_density"])
@pytest.mark.parametrize("given", ["x", (0.1,), object()], ids=["string", "tuple", "object"])
def test_dials_of_a_wrong_kind_raise(name: str, given: Any) -> None:
    for convert in (np.asarray, torch.from_numpy):
        with pytest.raises(TypeError, match=f"{name}: got"):
            smyrf.attention(*map(convert, smooth(1, 1, 1)), method="tree", **{name: given})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_give_the_bits_of_arrays(dtype: str) -> None:
    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in smooth()]
    # NumPy has no bfloat16; what it holds is exact in float32.
    exact = np.float32 if dtype == "bfloat16" else dtype
    dials: dict[str, Any] = {**GQA, "tolerance": 0.1, "return_lse": True}
    expected, expected_lse = smyrf.attention(
        *(x.float().numpy().astype(exact) for x in tensors), **dials
    )
    out, lse = smyrf.attention(*tensors, **dials)
    assert torch.equal(out, torch.from_numpy(expected).to(out.dtype))
    assert torch.equal(lse, torch.from_numpy(expected_lse))


def test_max_density_caps_the_density_of_real_heads() -> None:
    for name in HEADS:
        for cap in (0.1, 0.3):
            statistics = smyrf.attention(
                *head(name), method="tree", tolerance=0.001, max_density=cap, return_stats=True
            )[1]
            assert statistics.density[0, 0] <= 1.1 * cap
            assert statistics.expected_error[0, 0] > 0.0


@pytest.mark.parametrize("name", HEADS)
def test_a_capped_error_is_less_than_half_of_that_of_lsh(name: str) -> None:
    """Relative: at a quarter of the pairs each."""
    arrays = head(name)
    expected = smyrf.attention(*arrays, method="dense")
    dials = {"n_hashes": round(0.25 * arrays[1].shape[2] / 32), "cluster_size": 32}
    lsh = smyrf.attention(*arrays, method="lsh", **dials)
    out, statistics = smyrf.attention(
        *arrays, method="tree", tolerance=0.01, max_density=0.25, return_stats=True
    )
    assert not statistics.dense_heads[0, 0]
    assert statistics.density[0, 0] <= 0.25 * 1.1
    theirs = relative_error(lsh, expected, arrays[2])[0, 0]
    assert relative_error(out, expected, arrays[2])[0, 0] < 0.5 * theirs


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [2, 4095])
def test_a_value_that_is_not_finite_makes_its_head_dense(bad: float, row: int) -> None:
    # With max_density too, and in rows that no sample holds.
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 4096, 8), np.float32)
    v[0, 0, row, 3] = bad
    out, stats = smyrf.attention(
        *(q, k, v),
        method="tree",
        tolerance=0.1,
        max_density=0.2,
        precision="float32",
        return_stats=True,
    )
    assert stats.dense_heads.all()
    assert np.array_equal(out, smyrf.attention(q, k, v, method="dense"), equal_nan=True)
