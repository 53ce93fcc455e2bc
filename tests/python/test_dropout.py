"""Dropout: what is kept, seen by values that are rows of the identity matrix, and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import pair_counts

import smyrf

P = 0.3
LSH: dict[str, Any] = {"method": "lsh", "n_hashes": 3, "cluster_size": 8}
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "causal": {"is_causal": True},
    "lsh": LSH,
}


def rows(heads: int = 4, key_heads: int = 4, queries: int = 70, keys: int = 90) -> Any:
    """query, key (2, H, N, 16), and the identity matrix as values."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, queries, 16, generator=generator)
    key = torch.randn(2, key_heads, keys, 16, generator=generator)
    return query, key, torch.eye(keys).expand(2, key_heads, -1, -1).contiguous()


def weights(options: dict[str, Any], **dropout: Any) -> torch.Tensor:
    """What each key gives to each query: (B, Hq, Nq, Nk)."""
    result: torch.Tensor = smyrf.attention(*rows(), **options, **dropout)
    return result


@pytest.mark.parametrize("name", METHODS)
def test_pairs_are_kept_at_the_rate_asked_for_and_scaled(name: str) -> None:
    options = {**METHODS[name], "seed": 4}
    plain = weights(METHODS[name], seed=4) if name == "lsh" else weights(METHODS[name])
    for p in (0.1, P, 0.75):
        dropped = weights(options, dropout_p=p)
        evaluated = plain > 0
        kept = dropped > 0
        assert not (kept & ~evaluated).any()
        count = int(evaluated.sum())
        # Five standard deviations, of all pairs and of every query's.
        assert (
            abs(float(kept[evaluated].double().mean()) - (1 - p)) < 5 * (p * (1 - p) / count) ** 0.5
        )
        of_row = evaluated.sum(3)
        spread = (kept.sum(3) - (1 - p) * of_row) / (of_row * p * (1 - p)).sqrt().clamp(min=1)
        assert spread.abs().max() < 5
        torch.testing.assert_close(dropped[kept] * (1 - p), plain[kept], rtol=1e-5, atol=0)
        assert (dropped[~kept] == 0).all()


def test_neighbouring_pairs_heads_and_entries_are_dropped_apart() -> None:
    kept = (weights({"method": "dense"}, dropout_p=0.5) > 0).double() * 2 - 1
    for axis in range(4):
        together = (kept * kept.roll(1, axis)).mean()
        assert abs(float(together)) < 5 / kept.numel() ** 0.5


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_repeats_and_another_differs(name: str) -> None:
    options = METHODS[name]
    first = weights(options, dropout_p=P, seed=7)
    for threads in (1, 2, 5):
        assert torch.equal(weights(options, dropout_p=P, seed=7, num_threads=threads), first)
    other = weights(options, dropout_p=P, seed=8)
    both = (first > 0) == (other > 0)
    assert both.double().mean() < 0.9


def test_dense_and_lsh_of_one_seed_drop_the_same_pairs() -> None:
    dense = weights({"method": "dense"}, dropout_p=P, seed=3) > 0
    plan = smyrf.plan(*rows()[:2], **LSH, seed=3)
    evaluated = torch.from_numpy(pair_counts(plan) > 0)
    lsh = weights(LSH, dropout_p=P, seed=3) > 0
    assert torch.equal(lsh, dense & evaluated)
    assert torch.equal(weights({"plan": plan}, dropout_p=P, seed=3) > 0, lsh)


@pytest.mark.parametrize("name", METHODS)
def test_lse_is_that_without_dropout_and_arrays_have_the_bits_of_tensors(name: str) -> None:
    tensors = rows()
    given: dict[str, Any] = {**METHODS[name], "return_lse": True}
    seed = {"seed": 5} if name != "dense" else {}
    _, lse = smyrf.attention(*tensors, **given, **seed)
    out, dropped_lse = smyrf.attention(*tensors, **given, seed=5, dropout_p=P)
    assert torch.equal(lse, dropped_lse)
    arrays = (x.numpy() for x in tensors)
    numpy_out, numpy_lse = smyrf.attention(*arrays, **given, seed=5, dropout_p=P)
    assert np.array_equal(out, numpy_out)
    assert np.array_equal(lse, numpy_lse)


def test_auto_takes_dense_and_a_dropout_of_0_changes_nothing() -> None:
    query, key, value = (torch.randn(1, 1, 2048, 8) for _ in range(3))
    for dropout_p, method in ((0.0, "tree"), (0.1, "dense")):
        given: dict[str, Any] = {"dropout_p": dropout_p, "return_stats": True}
        assert smyrf.attention(query, key, value, **given)[1].method == method
        assert smyrf.plan(query, key, value=value, dropout_p=dropout_p).method == method
    assert torch.equal(weights(LSH, dropout_p=0.0), weights(LSH))


def test_recorded_errors_are_those_of_the_method_not_of_dropout() -> None:
    query, key, value = rows()
    with smyrf.collect(errors=True) as records:
        smyrf.attention(query, key, value, dropout_p=P, seed=3)
        smyrf.attention(query, key, value, dropout_p=P, seed=3, **LSH)
    exact, far = (record.relative_error for record in records)
    assert exact is not None
    assert far is not None
    assert exact.max() < 1e-6
    assert far.min() > 0.1


GROUPED: dict[str, Any] = {
    "enable_gqa": True,
    "key_padding_mask": torch.arange(90) < torch.tensor([[90], [77]]),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_pairs_kept(name: str, dtype: torch.dtype) -> None:
    """Exact, to the rounding of dtype: PyTorch's own operations, with what was kept as a mask."""
    query, key, identity = rows(key_heads=2)
    value = torch.randn(2, 2, 90, 8, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {**METHODS[name], **GROUPED, "seed": 6}
    inputs = [x.to(dtype).requires_grad_() for x in (query, key, value)]
    plan = smyrf.plan(*(x.detach() for x in inputs[:2]), **options, dropout_p=P)
    shown = smyrf.attention(
        *(x.detach() for x in inputs[:2]), identity.to(dtype), plan=plan, **options, dropout_p=P
    )
    kept = (shown > 0).double() / (1 - P)

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    q, k, v = doubles[0], *(x.repeat_interleave(2, 1) for x in doubles[1:])
    counts = torch.from_numpy(pair_counts(plan)) if name == "lsh" else torch.ones(2, 4, 70, 90)
    if name == "causal":
        counts = counts.tril(20)
    counts = counts * GROUPED["key_padding_mask"][:, None, None]
    logits = q @ k.mT / 4 + counts.double().log()
    want = ((logits.softmax(3) * kept) @ v, logits.logsumexp(3))
    got = smyrf.attention(*inputs, **options, dropout_p=P, return_lse=True)
    bound = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for one, other in zip(got, want, strict=True):
        assert (one.double() - other).norm() < bound * other.norm()

    signs = [torch.where(torch.rand(x.shape) < 0.5, -1.0, 1.0) for x in want]
    found = torch.autograd.grad(
        got, inputs, [s.to(x.dtype) for s, x in zip(signs, got, strict=True)]
    )
    exact = torch.autograd.grad(want, doubles, [s.double() for s in signs])
    reference = smyrf.reference.attention(
        *doubles, **options, dropout_p=P, plan=plan, return_lse=True
    )
    of_reference = torch.autograd.grad(reference, doubles, [s.double() for s in signs])
    for one, other, third in zip(found, exact, of_reference, strict=True):
        assert (one.double() - other).norm() < bound * other.norm()
        torch.testing.assert_close(third, other)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_have_the_same_bits_for_any_number_of_threads(name: str) -> None:
    inputs = [x.requires_grad_() for x in rows()]

    def gradients(threads: int) -> Any:
        out = smyrf.attention(*inputs, **METHODS[name], seed=2, dropout_p=P, num_threads=threads)
        return torch.autograd.grad(out.square().sum(), inputs)

    want = gradients(1)
    for threads in (2, 5):
        for one, other in zip(gradients(threads), want, strict=True):
            assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    inputs = [x.requires_grad_() for x in rows()]

    def model(query: Any, key: Any, value: Any) -> Any:
        return smyrf.attention(2 * query, key, value, dropout_p=P, seed=9).square()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        torch.autograd.grad(compiled(*inputs).sum(), inputs),
        torch.autograd.grad(model(*inputs).sum(), inputs),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_dropout_of_1_leaves_nothing_as_in_pytorch(name: str) -> None:
    inputs = [x.requires_grad_() for x in rows()]
    options = METHODS[name]
    out, lse = smyrf.attention(*inputs, **options, dropout_p=1.0, return_lse=True)
    assert (out == 0).all()
    assert torch.equal(lse, smyrf.attention(*inputs, **options, return_lse=True)[1])
    assert all((x == 0).all() for x in torch.autograd.grad(out.sum(), inputs))
    arrays = [x.detach().numpy() for x in inputs]
    assert (smyrf.attention(*arrays, **options, dropout_p=1.0) == 0).all()
    assert (smyrf.reference.attention(*arrays, **options, dropout_p=1.0) == 0).all()
    doubles = [x.detach().double() for x in inputs]
    assert (smyrf.reference.attention(*doubles, **options, dropout_p=1.0) == 0).all()
