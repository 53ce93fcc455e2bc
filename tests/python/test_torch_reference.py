"""`smyrf.reference.attention` of float64 tensors: exact against the core's, and its derivatives.

Everything that tests gradients leans on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import smyrf

Tensors = list[torch.Tensor]
LSH = {"method": "lsh", "cluster_size": 4}
TREE = {"method": "tree", "max_density": 0.6, "tolerance": 0.2}


def tensors(
    queries: int = 7, keys: int = 9, heads: int = 2, key_heads: int = 2, batch: int = 1
) -> Tensors:
    """query (batch, heads, queries, 3), key (…, 3), value (…, 2): float32 numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, queries, 3), (key_heads, keys, 3), (key_heads, keys, 2))
    return [torch.randn(batch, *shape, generator=generator).double() for shape in shapes]


def tree_tensors(heads: int = 2, key_heads: int = 1) -> Tensors:
    """Queries from short to long, so that the logits' variances over nodes are small and large."""
    query, key, value = tensors(12, 112, heads, key_heads)
    return [(query * torch.linspace(0.05, 8, 12)[:, None]).float().double(), key, value]


def frozen(qkv: Tensors, **options: Any) -> smyrf.Plan:
    query, key, value = (x.float() for x in qkv)
    return smyrf.plan(query, key, value, options.pop("attn_mask", None), **options)


GENERATOR = torch.Generator().manual_seed(1)
SOME = torch.rand(7, 9, generator=GENERATOR) < 0.7
BLIND = torch.rand(1, 2, 7, 9, generator=GENERATOR) < 0.7
BLIND[:, :, 2] = False
BIAS = torch.randn(7, 9, generator=GENERATOR).masked_fill(~SOME, -torch.inf)
PADDING = {
    "key_padding_mask": torch.tensor([[True] * 6 + [False] * 3]),
    "query_padding_mask": torch.tensor([[False] + [True] * 6]),
}
CASES: dict[str, tuple[Tensors, dict[str, Any]]] = {
    "dense": (tensors(), {}),
    "scale": (tensors(), {"scale": -0.8}),
    "bool mask": (tensors(), {"attn_mask": SOME}),
    "bool mask, a blind row": (tensors(), {"attn_mask": BLIND}),
    "float mask": (tensors(), {"attn_mask": BIAS}),
    "causal": (tensors(), {"is_causal": True}),
    "causal, blind rows": (tensors(9, 7), {"is_causal": True}),
    "window": (tensors(), {"window": (2, 1)}),
    "positions": (tensors(), {"is_causal": True, "positions": (5, 3)}),
    "padding": (tensors(), PADDING),
    "all masks": (
        tensors(),
        {"attn_mask": BIAS, "is_causal": True, "window": (4, -1), **PADDING},
    ),
    "grouped": (tensors(heads=4, key_heads=2, batch=2), {"enable_gqa": True, "is_causal": True}),
    "lsh, 1 round": (tensors(13, 18), {**LSH, "n_hashes": 1}),
    "lsh, 3 rounds": (tensors(13, 18), {**LSH, "n_hashes": 3, "scale": 0.9}),
    "lsh, 1 cluster": (tensors(7, 5), {**LSH, "n_hashes": 3}),
    "lsh, grouped and padded": (
        tensors(heads=4, key_heads=2),
        {"method": "lsh", "cluster_size": 2, "n_hashes": 2, "enable_gqa": True, **PADDING},
    ),
    "tree": (tree_tensors(), {**TREE, "enable_gqa": True}),
    "tree, no tree": (tensors(), {**TREE, "max_density": 1.0}),
    "tree, two key heads": (
        tree_tensors(key_heads=2),
        {**TREE, "key_padding_mask": torch.arange(112)[None] < 110, "scale": 0.8},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
@pytest.mark.parametrize("planned", [False, True], ids=["no plan", "plan"])
def test_it_is_the_reference_of_the_core(case: str, layout: str, planned: bool) -> None:
    """Exact: both in float64; the order of sums is all that differs."""
    qkv, options = CASES[case]
    plan = frozen(qkv, **options) if planned else None
    if layout == "BNHD":
        qkv = [x.transpose(1, 2).contiguous() for x in qkv]
    given: dict[str, Any] = {**options, "layout": layout, "plan": plan, "return_lse": True}
    out, lse = smyrf.reference.attention(*qkv, **given)
    want, want_lse = smyrf.reference.attention(*(x.float() for x in qkv), **given)
    assert isinstance(want, np.ndarray)
    assert out.dtype == lse.dtype == torch.float64
    np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-12, atol=1e-12)
    assert out.isfinite().all()


def logit_variances(qkv: Tensors, plan: smyrf.Plan, h: int) -> list[tuple[float, float]]:
    """(u, ln n) of every query and node that `plan` lets stand, by the definition in the docs."""
    query, key = (x[0].numpy() for x in qkv[:2])
    g = h // (plan.query_heads // plan.key_heads)
    constants = (x.astype(np.float64) for x in plan.tree_constants(0, g))
    query_basis, key_basis, directions, profiles = constants
    key_order, _, nodes = plan.tree(0, g)
    query_order, _, blocks = plan.head(0, 0, h)
    y = query[h] @ query_basis / np.sqrt(query.shape[2])
    found = []
    for (begin, end, _), closed in zip(blocks, plan.nodes(0, h), strict=True):
        for node in closed:
            first, last = nodes[node][:2]
            x = key[g, key_order[first:last]] @ key_basis
            d = directions[node]
            along = (x @ d).var()
            across = max(x.var(0).sum() - along, 0)
            root = next(r for r in range(len(profiles)) if first < nodes[r][1])
            for i in query_order[begin:end]:
                u = (y[i] @ d) ** 2 * along + y[i] ** 2 @ profiles[root] * across
                found.append((float(u), float(np.log(last - first))))
    return found


def test_closed_nodes_of_both_branches_are_in_the_case_of_tree() -> None:
    qkv, options = CASES["tree"]
    plan = frozen(qkv, **options)
    variances = [x for h in range(2) for x in logit_variances(qkv, plan, h)]
    wide = [u > 2 * log_count for u, log_count in variances]
    assert 15 < sum(wide) < len(wide) - 15


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    """Exact: against differences, for out and lse."""
    qkv, options = CASES[case]
    plan = frozen(qkv, **options)
    inputs = [x.clone().requires_grad_() for x in qkv]

    def results(*rows: torch.Tensor) -> Tensors:
        out, lse = smyrf.reference.attention(*rows, **options, plan=plan, return_lse=True)
        return [out, torch.where(lse.isneginf(), 0.0, lse)]

    assert torch.autograd.gradcheck(results, inputs)
    for gradient in torch.autograd.grad(results(*inputs)[0].sum(), inputs):
        assert gradient.isfinite().all()


def test_the_gradient_of_a_float_mask() -> None:
    bias = torch.randn(7, 9, generator=GENERATOR).double().requires_grad_()
    qkv = tensors()
    assert torch.autograd.gradcheck(lambda x: smyrf.reference.attention(*qkv, x), (bias,))


def test_equal_keys_have_no_variance_and_finite_gradients() -> None:
    """u = 0, where the root of the second branch has no derivative."""
    query, key, value = tree_tensors()
    key[:] = key[:, :, :1]
    plan = frozen([query, key, value], **TREE, enable_gqa=True)
    assert any(plan.nodes(0, 0))
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out, lse = smyrf.reference.attention(*inputs, enable_gqa=True, plan=plan, return_lse=True)
    logits = (query * key[0, 0, 0]).sum(3) / 3**0.5
    torch.testing.assert_close(lse, logits + np.log(112))
    for gradient in torch.autograd.grad(out.sum() + lse.sum(), inputs):
        assert gradient.isfinite().all()


def test_padding_is_never_read_and_has_no_gradient() -> None:
    query, key, value = tensors()
    query[0, :, 0] = torch.nan
    key[0, :, 6:] = torch.nan
    value[0, :, 6:] = torch.nan
    inputs = [x.requires_grad_() for x in (query, key, value)]
    for options in ({}, {**LSH, "n_hashes": 2, "cluster_size": 2}):
        out = smyrf.reference.attention(*inputs, **options, **PADDING)
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        for gradient, padded in zip(
            gradients, (slice(0, 1), slice(6, 9), slice(6, 9)), strict=True
        ):
            assert (gradient[:, :, padded] == 0).all()
            assert gradient.isfinite().all()
            assert (gradient != 0).any()


def test_heads_that_are_not_finite_are_nan() -> None:
    query, key, value = tensors()
    query[0, 1, 3] = torch.inf
    given: dict[str, Any] = {**LSH, **PADDING, "return_lse": True}
    out, lse = smyrf.reference.attention(query, key, value, **given)
    want, want_lse = smyrf.reference.attention(*(x.float() for x in (query, key, value)), **given)
    np.testing.assert_allclose(out, want, rtol=1e-12)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-12)
    assert out[0, 1, 1:].isnan().all()


def test_bad_calls_raise_as_those_of_float32_do() -> None:
    query, key, value = tensors()
    plan = frozen([query, key, value], method="dense")
    for arguments, options, error, says in (
        ((query, key[:, :, :4], value), {}, ValueError, "value: "),
        ((query, key.float(), value), {}, TypeError, "key: got dtype torch.float32, expected"),
        ((query, key.numpy(), value), {}, TypeError, "key: got ndarray"),
        ((query, key, value), {"n_hashes": 2, "method": "dense"}, ValueError, "n_hashes: "),
        ((query, key, value), {"plan": plan, "method": "lsh"}, ValueError, "method: differs"),
        ((query[:, :, 1:], key, value), {"plan": plan}, ValueError, "plan: was made for Nq"),
    ):
        with pytest.raises(error, match=f"^{says}"):
            smyrf.reference.attention(*arguments, **options)
    with smyrf.collect() as records:
        smyrf.reference.attention(query, key, value)
    assert not records
