"""Ranks, broadcast dimensions, memory that is not contiguous: as PyTorch's own attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import smyrf

GQA = {"enable_gqa": True}
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


# Shapes of query, key and value.
SHAPES: dict[str, tuple[Any, ...]] = {
    "keys of batch 1": ((2, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)),
    "queries of batch 1": ((1, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)),
    "one key head": ((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
    "one query head": ((2, 1, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)),
    "value alone": ((2, 3, 5, 8), (2, 3, 7, 8), (1, 1, 7, 8)),
    "key alone": ((2, 3, 5, 8), (1, 1, 7, 8), (2, 3, 7, 8)),
    "more values": ((1, 1, 5, 8), (1, 1, 7, 8), (2, 3, 7, 8)),
    "key without batch": ((2, 3, 5, 8), (3, 7, 8), (7, 8)),
    "query without batch": ((5, 8), (2, 3, 7, 8), (7, 8)),
    "two": ((5, 8), (7, 8), (7, 4)),
    "three": ((3, 5, 8), (3, 7, 8), (3, 7, 8)),
    "three over one": ((3, 5, 8), (7, 8), (1, 7, 8)),
    "five": ((4, 2, 3, 5, 8), (1, 2, 3, 7, 8), (4, 1, 3, 7, 4)),
    "five over four": ((4, 2, 3, 5, 8), (2, 3, 7, 8), (2, 1, 7, 8)),
    "six": ((1, 4, 2, 3, 5, 8), (1, 4, 2, 3, 7, 8), (1, 1, 2, 1, 7, 8)),
    "grouped, one batch": ((2, 6, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8), GQA),
    "grouped, value heads": ((2, 12, 5, 8), (2, 6, 7, 8), (2, 4, 7, 8), GQA),
    "grouped, three": ((6, 5, 8), (3, 7, 8), (3, 7, 8), GQA),
    "grouped, five": ((4, 2, 6, 5, 8), (4, 2, 3, 7, 8), (4, 1, 3, 7, 8), GQA),
    "no batch": ((0, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)),
    "no heads": ((2, 0, 5, 8), (2, 0, 7, 8), (2, 1, 7, 8)),
    "D 0": ((2, 3, 5, 0), (2, 3, 7, 0), (2, 3, 7, 4)),
    "Dv 0": ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 0)),
    "D and Dv 0": ((5, 0), (7, 0), (7, 0)),
    "no keys": ((3, 5, 8), (3, 0, 8), (3, 0, 4)),
    "no queries": ((3, 0, 8), (3, 7, 8), (3, 7, 8)),
}


def masks_for(lead: tuple[int, ...]) -> list[torch.Tensor | None]:
    """Additive and boolean masks of every rank that broadcasts to (*lead, 5, 7)."""
    shapes = {(5, 7), (*lead, 5, 7), (*lead[:1], *(1,) * len(lead[1:]), 5, 1), (*lead[-1:], 1, 7)}
    floats = [normal(*shape) for shape in sorted(shapes)]
    seen = torch.ones(*lead, 5, 7, dtype=torch.bool)
    seen[..., 4] = False
    return [None, *floats, seen]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_pytorchs(name: str) -> None:
    *shapes, options = (*SHAPES[name], {})[:4]
    qkv = [normal(*shape) for shape in shapes]
    arrays = [x.numpy() for x in qkv]
    plain = scaled_dot_product_attention(*qkv, **options)
    lead = plain.shape[:-2]
    for mask in (
        masks_for(lead)
        if (shapes[0][-2], shapes[1][-2]) == (5, 7) and name != "more values"
        else [None]
    ):
        theirs = scaled_dot_product_attention(*qkv, mask, **options)
        out = smyrf.attention(*qkv, mask, **options)
        torch.testing.assert_close(out, theirs, rtol=0, atol=4e-6)
        assert out.stride() == theirs.stride() or not out.numel()
        numpy_mask = None if mask is None else mask.numpy()
        result, lse, statistics = smyrf.attention(
            *arrays, numpy_mask, **options, return_lse=True, return_stats=True
        )
        assert result.tobytes() == out.numpy().tobytes()
        assert lse.shape == theirs.shape[:-1]
        assert statistics.density.size == math.prod(lead)
        for kind in (qkv, arrays):
            masks = mask if kind is qkv else numpy_mask
            written = torch.full_like(out, torch.nan)
            target: Any = written if kind is qkv else written.numpy()
            plan = smyrf.plan(*kind, masks, **options)
            assert smyrf.attention(*kind, masks, **options, plan=plan, out=target) is target
            assert torch.equal(written, out)
            exact = smyrf.reference.attention(*kind, masks, **options)
            assert exact.shape == out.shape
            np.testing.assert_allclose(exact, out, rtol=0, atol=4e-6)
    doubles = smyrf.reference.attention(*(x.double() for x in qkv), **options)
    assert doubles.shape == plain.shape


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("return_stats", [False, True], ids=["operator", "direct"])
def test_gradients_are_summed_over_what_was_broadcast(name: str, return_stats: bool) -> None:
    *shapes, options = (*SHAPES[name], {})[:4]
    qkv = [normal(*shape) for shape in shapes]
    ours, theirs = ([x.clone().requires_grad_() for x in qkv] for _ in range(2))
    expected = scaled_dot_product_attention(*theirs, **options)
    out = smyrf.attention(*ours, **options, return_stats=return_stats)
    grad = normal(*expected.shape)
    expected.backward(grad)
    (out[0] if return_stats else out).backward(grad)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=2e-5)


def test_a_broadcast_batch_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = normal(4, 2, 5, 8), normal(1, 1, 7, 8)
    seen: list[Any] = []
    real = smyrf._core.attention

    def spy(*arguments: Any) -> Any:
        seen.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(smyrf._core, "attention", spy)
    smyrf.attention(query.numpy(), key.numpy(), key.numpy())
    assert all(np.shares_memory(x, key.numpy()) for x in seen[0][1:3])


def test_layout_bnhd_of_other_ranks() -> None:
    for *shapes, options in (
        ((2, 3, 5, 8), (1, 1, 7, 8), (2, 3, 7, 4), {}),
        ((4, 2, 3, 5, 8), (2, 3, 7, 8), (1, 1, 7, 8), {}),
        ((6, 5, 8), (3, 7, 8), (3, 7, 8), GQA),
        ((3, 5, 8), (7, 8), (1, 7, 8), {}),
    ):
        qkv = [normal(*shape) for shape in shapes]
        expected, lse = smyrf.attention(*qkv, **options, return_lse=True)
        turned = [x.transpose(-3, -2) if x.ndim > 2 else x for x in qkv]
        out, turned_lse = smyrf.attention(*turned, **options, layout="BNHD", return_lse=True)
        assert torch.equal(out, expected.transpose(-3, -2))
        assert out.is_contiguous()
        assert torch.equal(lse, turned_lse)


def test_padding_masks_have_the_batch_of_the_call() -> None:
    padding = torch.arange(7) < 5
    for batch in ((), (3,), (4, 2)):
        heads = (3,) if len(batch) != 1 and batch else ()
        query, key = normal(*batch, *heads, 5, 8), normal(*batch, *heads, 7, 8)
        out = smyrf.attention(query, key, key, key_padding_mask=padding.expand(*batch, 7))
        torch.testing.assert_close(
            out, scaled_dot_product_attention(query, key, key, padding[None]), rtol=0, atol=4e-6
        )
        with pytest.raises(ValueError, match=r"^key_padding_mask: got shape .*expected .*7,?\)"):
            smyrf.attention(query, key, key, key_padding_mask=padding.expand(*batch, 7)[..., 1:])
    # A batch of 1 that stands for many may bring its own.
    query, key = normal(4, 2, 5, 8), normal(1, 2, 7, 8)
    out = smyrf.attention(query, key, key, key_padding_mask=padding[None])
    expected = scaled_dot_product_attention(query, key, key, padding[None])
    torch.testing.assert_close(out, expected, rtol=0, atol=4e-6)


def crooked(kind: str, *shape: int) -> torch.Tensor:
    """Normal numbers whose last dimension is not contiguous."""
    if kind == "turned":
        return normal(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if kind == "every other":
        return normal(*shape[:-1], 2 * shape[-1])[..., ::2]
    if kind == "one number":
        return normal(*shape[:-1], 1).expand(shape)
    return normal(shape[-1], *shape[:-1]).permute(*range(1, len(shape)), 0)  # outermost


@pytest.mark.parametrize("kind", ["turned", "every other", "one number", "outermost"])
@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"method": "lsh"}, {"method": "tree", "tolerance": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_contiguous(
    kind: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    rows = 300 if options.get("method") == "tree" else 20
    qkv = [crooked(kind, 2, 3, rows, 8).to(dtype=dtype) for _ in range(3)]
    if dtype != torch.float32:  # the cast made copies
        qkv = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in qkv]
    assert all(x.stride(-1) != 1 for x in qkv)
    whole = [x.contiguous() for x in qkv]
    expected = smyrf.attention(*whole, **options)
    assert torch.equal(smyrf.attention(*qkv, **options), expected)
    assert torch.equal(smyrf.attention(*qkv, **options, return_stats=True)[0], expected)
    plan = smyrf.plan(*qkv, **options)
    written = torch.empty(2, 3, rows, 8, dtype=dtype)
    assert smyrf.attention(*qkv, **options, plan=plan, out=written) is written
    assert torch.equal(written, expected)
    if options.get("method") != "lsh":
        densities = [smyrf.estimate(*x, **{"method": "auto", **options}) for x in (qkv, whole)]
        assert (densities[0].density == densities[1].density).all()
    exact = smyrf.reference.attention(*whole, **options)
    assert (smyrf.reference.attention(*qkv, **options) == exact).all()
    if dtype == torch.float32:
        arrays = [x.numpy() for x in qkv]
        assert (smyrf.attention(*arrays, **options) == expected.numpy()).all()
        assert smyrf.plan(*arrays, **options).density(1, 1) == plan.density(1, 1)
        assert (smyrf.reference.attention(*arrays, **options) == exact).all()

    grad = crooked(kind, 2, 3, rows, 8).to(dtype=dtype)
    gradients = [
        torch.autograd.grad(smyrf.attention(*given, **options), given, grad)
        for given in ([x.requires_grad_() for x in qkv], [x.requires_grad_() for x in whole])
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_sums_give_gradients_of_one_number() -> None:
    qkv = [normal(2, 3, 9, 8).requires_grad_() for _ in range(3)]
    smyrf.attention(*qkv).sum().backward()
    theirs = torch.autograd.grad(scaled_dot_product_attention(*qkv).sum(), qkv)
    for x, grad in zip(qkv, theirs, strict=True):
        torch.testing.assert_close(x.grad, grad, rtol=0, atol=2e-5)


def heads_inside(batch: int, heads: int, rows: int, depth: int) -> torch.Tensor:
    return normal(batch, rows, heads, depth).transpose(1, 2)


def packed(index: int) -> torch.Tensor:
    return normal(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4)[index]


Q, K = heads_inside(2, 3, 5, 8), heads_inside(2, 3, 7, 8)
ONES = torch.ones
STRIDES: dict[str, tuple[Any, ...]] = {
    "contiguous": (normal(2, 3, 5, 8), K, K),
    "heads inside": (Q, K, K),
    "Dv": (Q, K, heads_inside(2, 3, 7, 4)),
    "causal": (Q, Q, Q, {"is_causal": True}),
    "mask of 2": (Q, K, K, {"attn_mask": ONES(5, 7) > 0}),
    "mask of 3": (Q, K, K, {"attn_mask": ONES(3, 5, 7)}),
    "mask of 4": (Q, K, K, {"attn_mask": ONES(2, 1, 1, 7)}),
    "broadcast": (Q, K[:1], K[:1]),
    "grouped": (heads_inside(2, 6, 5, 8), K, K, GQA),
    "packed": (packed(0), packed(1), packed(2)),
    "one query": (heads_inside(2, 3, 1, 8), K, K),
    "no keys": (Q, K[:, :, :0], K[:, :, :0]),
    "expanded heads": (Q[:, :1].expand(2, 3, 5, 8), K, K),
    "expanded batch": (Q[:1].expand(2, 3, 5, 8), K, K),
    "rows outside": (normal(5, 2, 3, 8).permute(1, 2, 0, 3), K, K),
    "heads outside": (normal(3, 2, 5, 8).transpose(0, 1), K, K),
    "turned key": (Q, crooked("turned", 2, 3, 7, 8), K),
    "turned query": (crooked("turned", 2, 3, 5, 8), K, K),
    "three": (normal(5, 3, 8).transpose(0, 1),) * 3,
    "bfloat16": (Q.bfloat16(), K.bfloat16(), K.bfloat16()),
}


@pytest.mark.parametrize("name", STRIDES)
def test_out_has_strides_for_the_views_that_follow_pytorchs(name: str) -> None:
    *qkv, options = STRIDES[name] if isinstance(STRIDES[name][-1], dict) else (*STRIDES[name], {})
    theirs = scaled_dot_product_attention(*qkv, **options)
    torch._dynamo.reset()
    for out in (
        smyrf.attention(*qkv, **options),
        smyrf.attention(*qkv, **options, return_stats=True)[0],
        torch.compile(smyrf.attention, backend="aot_eager", fullgraph=True)(*qkv, **options),
        smyrf.attention(
            *(x.to("meta") for x in qkv),
            **{n: x if isinstance(x, bool) else x.to("meta") for n, x in options.items()},
        ),
    ):
        # The stride of a single index decides no view.
        sizes = zip(out.stride(), theirs.stride(), out.shape, strict=True)
        assert all(ours == other for ours, other, size in sizes if size > 1)
    out.transpose(1, 2).contiguous()
    if theirs.transpose(1, 2).is_contiguous():
        out.transpose(1, 2).view(*theirs.transpose(1, 2).shape[:2], -1)


def test_out_that_cannot_be_seen_as_one_batch() -> None:
    qkv = [normal(4, 2, 3, 5, 8) for _ in range(3)]
    apart = torch.zeros(4, 5, 3, 5, 8)[:, :2]
    for given, out in ((qkv, apart), ([x.numpy() for x in qkv], apart.numpy())):
        with pytest.raises(ValueError, match=r"^out: .*pass a contiguous one"):
            smyrf.attention(*given, out=out)
        with pytest.raises(ValueError, match=r"^out: got shape .*expected \(4, 2, 3, 5, 8\)"):
            smyrf.attention(*given, out=out[0])
    assert (apart == 0).all()


@pytest.mark.parametrize("instruction_set", smyrf._core.instruction_sets())
@pytest.mark.parametrize(("depth", "value_depth"), [(576, 512), (1024, 1025), (2048, 2048)])
def test_long_head_dimensions(instruction_set: str, depth: int, value_depth: int) -> None:
    smyrf._core.force_instruction_set(instruction_set)
    try:
        for queries in (2, 40):
            qkv = (
                normal(1, 2, queries, depth),
                normal(1, 2, 70, depth),
                normal(1, 2, 70, value_depth),
            )
            ours = [x.clone().requires_grad_() for x in qkv]
            doubles = [x.double().requires_grad_() for x in qkv]
            theirs = scaled_dot_product_attention(*doubles)
            out = smyrf.attention(*ours)
            grad = normal(*out.shape)
            torch.testing.assert_close(out.double(), theirs, rtol=0, atol=1e-5)
            wanted = torch.autograd.grad(theirs, doubles, grad.double())
            for x, y in zip(torch.autograd.grad(out, ours, grad), wanted, strict=True):
                torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-4)
            arrays = [x.numpy() for x in qkv]
            for method in ("lsh", "tree") if depth < 600 else ("lsh",):
                exact = smyrf.reference.attention(*arrays, method=method)
                result = smyrf.attention(*arrays, method=method)
                np.testing.assert_allclose(result, exact, rtol=0, atol=1e-5)
    finally:
        smyrf._core.force_instruction_set("")


def test_auto_takes_dense_above_d_512() -> None:
    for depth, method in ((512, "tree"), (513, "dense")):
        row = normal(1, 1, 1, depth).expand(1, 1, 2048, depth)
        assert smyrf.plan(row, row, row[..., :4], method="auto", tolerance=0.5).method == method


def test_merge_of_other_ranks() -> None:
    for lead in ((), (3,), (4, 2, 3)):
        query, key = normal(*lead, 5, 8), normal(*lead, 7, 8)
        parts = [
            smyrf.attention(query, x, x, return_lse=True)
            for x in (key[..., :3, :], key[..., 3:, :])
        ]
        expected = smyrf.attention(query, key, key, return_lse=True)
        out, lse = smyrf.merge(*parts[0], *parts[1])
        torch.testing.assert_close(out, expected[0], rtol=0, atol=4e-6)
        torch.testing.assert_close(lse, expected[1], rtol=0, atol=4e-6)
        arrays = [x.numpy() for part in parts for x in part]
        numpy_out, numpy_lse = smyrf.merge(*arrays)
        assert (numpy_out == out.numpy()).all()
        assert (numpy_lse == lse.numpy()).all()
