"""The PyTorch operator: against PyTorch's own attention, and the contracts of operators."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_close, exact
from torch.library import opcheck
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

import smyrf
import smyrf.torch  # registers the operator
from smyrf import _core

LSH = {"method": "lsh", "n_hashes": 3, "cluster_size": 8}
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(
    queries: int = 33, keys: int = 50, heads: int = 4, key_heads: int = 4, seed: int = 0, **to: Any
) -> Tensors:
    """query (2, heads, queries, 16), key and value (2, key_heads, keys, 16 and 8)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, queries, 16), (key_heads, keys, 16), (key_heads, keys, 8))
    return tuple(torch.randn(2, *s, generator=generator).to(**to) for s in shapes)  # type: ignore[return-value]


MASKS = {
    "bool": torch.rand(33, 50, generator=torch.Generator().manual_seed(1)) < 0.7,
    "bool a head": torch.rand(1, 4, 33, 50, generator=torch.Generator().manual_seed(1)) < 0.7,
    "float": torch.randn(2, 1, 33, 50, generator=torch.Generator().manual_seed(1)),
    "float with -inf": torch.randn(33, 50, generator=torch.Generator().manual_seed(1)).masked_fill(
        torch.rand(33, 50, generator=torch.Generator().manual_seed(2)) < 0.3, -torch.inf
    ),
}


# Two float32 computations of numbers around 1, each within a few units in the last place.
def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_mean_what_they_mean_in_pytorch(mask: str) -> None:
    ours = smyrf.attention(*tensors(), MASKS[mask])
    assert_same(ours, scaled_dot_product_attention(*tensors(), MASKS[mask]))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 300), (33, 50), (50, 33), (260, 260)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"scale": -0.7}], ids=str)
def test_the_same_as_pytorch(queries: int, keys: int, options: dict[str, Any]) -> None:
    qkv = tensors(queries, keys)
    ours = smyrf.attention(*qkv, **options, method="dense")
    assert_same(ours, scaled_dot_product_attention(*qkv, **options))
    if queries == keys:
        ours = smyrf.attention(*qkv, is_causal=True, **options, method="dense")
        assert_same(ours, scaled_dot_product_attention(*qkv, is_causal=True, **options))


@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (33, 50)])
def test_causal_is_pytorchs_lower_right(queries: int, keys: int) -> None:
    qkv = tensors(queries, keys)
    bias = causal_lower_right(queries, keys)
    ours = smyrf.attention(*qkv, is_causal=True)
    assert_same(ours, scaled_dot_product_attention(*qkv, bias))
    upper_left = scaled_dot_product_attention(*qkv, is_causal=True)
    assert (ours - upper_left).abs().max() > 0.1


def test_grouped_queries_are_pytorchs() -> None:
    qkv = tensors(heads=6, key_heads=2)
    options = {"is_causal": True, "enable_gqa": True}
    ours = smyrf.attention(*(x[:, :, :33] for x in qkv), **options)
    assert_same(ours, scaled_dot_product_attention(*(x[:, :, :33] for x in qkv), **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_narrow_types_are_within_their_bound(dtype: torch.dtype, options: dict[str, Any]) -> None:
    qkv = tensors(133, 259, dtype=dtype)
    mask = MASKS["float"][:, :, :1, :1].to(dtype)
    for mask_options in ({}, {"attn_mask": mask}):
        expected = exact(
            *(x.float().numpy() for x in qkv),
            dtype=str(dtype).removeprefix("torch."),
            **options,
            **{name: x.float().numpy() for name, x in mask_options.items()},
        )
        out, lse = smyrf.attention(*qkv, **options, **mask_options, method="dense", return_lse=True)
        assert out.dtype == dtype
        assert lse.dtype == torch.float32
        assert_close(out.float().numpy(), lse.numpy(), expected)
        reference = smyrf.reference.attention(*qkv, **options, **mask_options)
        np.testing.assert_allclose(reference, expected.out, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, LSH], ids=str)
def test_numpy_and_pytorch_give_the_same_bits(options: dict[str, Any]) -> None:
    qkv = tensors()
    padding = torch.arange(50) < torch.tensor([[50], [41]])
    out, lse = smyrf.attention(*qkv, **options, key_padding_mask=padding, return_lse=True)
    arrays = [x.numpy() for x in qkv]
    numpy_out, numpy_lse = smyrf.attention(
        *arrays, **options, key_padding_mask=padding.numpy(), return_lse=True
    )
    assert out.numpy().tobytes() == numpy_out.tobytes()
    assert lse.numpy().tobytes() == numpy_lse.tobytes()
    # The operator, and the call that goes past it.
    direct, direct_lse, statistics = smyrf.attention(
        *qkv, **options, key_padding_mask=padding, return_lse=True, return_stats=True
    )
    assert torch.equal(direct, out)
    assert torch.equal(direct_lse, lse)
    plan = smyrf.plan(*qkv[:2], **options, key_padding_mask=padding)
    assert plan.density(1, 2) == statistics.density[1, 2]
    planned = torch.full_like(out, 7)
    assert smyrf.attention(*qkv, plan=plan, out=planned) is planned
    assert torch.equal(planned, out)


def test_out_and_lse_ignore_pytorchs_defaults() -> None:
    expected = smyrf.attention(*tensors(), return_lse=True)
    qkv = tensors()
    for return_stats in (False, True):
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                out, lse = smyrf.attention(*qkv, return_lse=True, return_stats=return_stats)[:2]
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(out, expected[0])
        assert torch.equal(lse, expected[1])


def operator_arguments(*qkv: torch.Tensor, **options: Any) -> tuple[Any, ...]:
    defaults: dict[str, Any] = {
        "attn_mask": None,
        "key_padding_mask": None,
        "query_padding_mask": None,
        "is_causal": False,
        "scale": None,
        "enable_gqa": False,
        "method": "auto",
        "n_hashes": None,
        "cluster_size": None,
        "tolerance": None,
        "max_density": None,
        "seed": 0,
        "window": None,
        "layout": "BHND",
        "num_threads": None,
        "dropout_p": 0.0,
        "positions": None,
        "precision": "auto",
    }
    assert options.keys() <= defaults.keys()
    return (*qkv, *{**defaults, **options}.values())


SAMPLES = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True, "scale": 0.3}),
    "window": ({}, {"window": [5, 2], "num_threads": 1}),
    "mask": ({}, {"attn_mask": MASKS["float"], "query_padding_mask": torch.ones(2, 33) > 0}),
    "grouped": ({"heads": 6, "key_heads": 2}, {"enable_gqa": True}),
    "bfloat16": ({"dtype": torch.bfloat16}, {"key_padding_mask": torch.rand(2, 50) < 0.8}),
    "lsh": ({}, {**LSH, "seed": 3}),
    "lsh float16": ({"dtype": torch.float16}, {**LSH, "key_padding_mask": torch.rand(2, 50) < 0.8}),
    "tree": ({"queries": 80, "keys": 200}, {"method": "tree", "tolerance": 0.3, "seed": 1}),
    "one query": ({"queries": 1}, {}),
    "dropout": ({}, {"dropout_p": 0.3, "seed": 4}),
    "positions": ({}, {"is_causal": True, "dropout_p": 0.3, "positions": [40, 11]}),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(sample: str) -> None:
    shape, options = SAMPLES[sample]
    qkv = tensors(**shape)
    operator = torch.ops.smyrf.attention.default
    opcheck(operator, operator_arguments(*qkv, **options))
    heads_last = [x.transpose(1, 2).contiguous() for x in qkv]
    opcheck(operator, operator_arguments(*heads_last, **{**options, "layout": "BNHD"}))
    turns = ((1, 2), (2, 3)) if sample in ("plain", "grouped") else ()
    for inner, outer in turns:  # heads inside, as projections leave them; crooked rows
        turned = [x.transpose(inner, outer).contiguous().transpose(inner, outer) for x in qkv]
        turned = [x.requires_grad_() for x in turned]
        opcheck(operator, operator_arguments(*turned, **options))
    out, lse = operator(*operator_arguments(*qkv, **options))
    backward = torch.ops.smyrf.attention_backward.default
    opcheck(backward, (out, lse, *operator_arguments(*qkv, out, lse, **options)))
    # Forward and backward, also as one graph.
    with_grad = [x.requires_grad_() for x in qkv]
    opcheck(operator, operator_arguments(*with_grad, **options))


def test_writing_to_out_is_seen_by_autograd() -> None:
    out = torch.zeros(2, 4, 33, 8)
    factor = torch.ones_like(out, requires_grad=True)
    product = out * factor  # keeps out for its backward pass
    smyrf.attention(*tensors(), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        smyrf.attention(*tensors(), out=torch.zeros(2, 4, 33, 8))


# Inductor does not quote PyTorch's folder when it calls the compiler.
inductor = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(" " in torch.__file__, reason="inductor fails below such a path"),
)


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager(backend: str) -> None:
    torch._dynamo.reset()

    def model(query: Any, key: Any, value: Any, **options: Any) -> Any:
        out, lse = smyrf.attention(2 * query, key, value, **options, return_lse=True)
        return out + 1, lse

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    padding = torch.arange(50) < torch.tensor([[50], [41]])
    for qkv, options in (
        (tensors(), {}),
        (tensors(), {"is_causal": True, "key_padding_mask": padding}),
        (tensors(), {"attn_mask": MASKS["float"], "scale": 0.3, "window": (9, 4)}),
        (tensors(heads=6, key_heads=2, dtype=torch.bfloat16), {"enable_gqa": True}),
        (tensors(), LSH),
    ):
        for ours, theirs in zip(compiled(*qkv, **options), model(*qkv, **options), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_one_compiled_graph_serves_all_lengths() -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def model(query: Any, key: Any, value: Any) -> Any:
        return smyrf.attention(query, key, value, is_causal=True)

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for queries, keys in ((33, 50), (70, 90), (129, 300)):
        qkv = tensors(queries, keys)
        assert torch.equal(compiled(*qkv), model(*qkv))
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_in_a_graph_breaks_it() -> None:
    torch._dynamo.reset()

    def model(*qkv: Any) -> Any:
        out, statistics = smyrf.attention(*qkv, return_stats=True)
        return out, statistics.density

    out, density = torch.compile(model, backend="eager")(*tensors())
    assert torch.equal(out, smyrf.attention(*tensors()))
    assert (density == 1).all()
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="return_stats can't be part of a comp"):
        torch.compile(model, backend="eager", fullgraph=True)(*tensors())


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, query: Any, key: Any, value: Any) -> Any:
            return smyrf.attention(query, key, value, is_causal=True)

    exported = torch.export.export(Model(), tensors()).module()
    assert torch.equal(exported(*tensors()), Model()(*tensors()))


def test_autocast_casts_as_pytorchs_attention_does() -> None:
    qkv = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = scaled_dot_product_attention(*qkv)
        ours = smyrf.attention(*qkv)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert smyrf.attention(*qkv, return_stats=True)[0].dtype == torch.bfloat16
        assert smyrf.attention(*qkv, MASKS["float"]).dtype == torch.bfloat16
        mixed = (qkv[0].bfloat16(), qkv[1], qkv[2])
        assert torch.equal(smyrf.attention(*mixed), ours)
        with pytest.raises(TypeError, match=r"^query: got dtype float64"):
            smyrf.attention(*(x.double() for x in qkv))
    expected = smyrf.attention(*(x.bfloat16() for x in qkv))
    assert torch.equal(ours, expected)
    assert smyrf.attention(*qkv).dtype == torch.float32


def test_threads_follow_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(name: str) -> Any:
        real = getattr(_core, name)

        def call(*arguments: Any) -> Any:
            asked.append(arguments[-1]["num_threads"])  # the dict of options
            return real(*arguments)

        return call

    for name in ("attention", "plan"):
        monkeypatch.setattr(_core, name, spy(name))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        smyrf.attention(*tensors())
        smyrf.attention(*tensors(), return_stats=True)
        smyrf.plan(*tensors()[:2])
        smyrf.attention(*tensors(), num_threads=2)
    finally:
        torch.set_num_threads(before)
    assert asked == [3, 3, 3, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_are_started_as_many_as_pytorch_would() -> None:
    code = """
import os, torch, smyrf
def started():
    return len(os.listdir("/proc/self/task"))
qkv = [torch.zeros(1, 4, 600, 16)] * 3
before = started()
torch.set_num_threads(1)
smyrf.attention(*qkv)
assert started() == before, "one thread"
torch.set_num_threads(4)
smyrf.attention(*qkv)
four = started()
assert four > before
torch.set_num_threads(7)
smyrf.attention(*qkv)
assert started() == four + 3, (before, four, started())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_meta_and_fake_tensors_have_shapes_only() -> None:
    for layout, shape in (("BHND", (2, 4, 33, 8)), ("BNHD", (2, 33, 4, 8))):
        qkv = tensors()
        if layout == "BNHD":
            qkv = tuple(x.transpose(1, 2).contiguous() for x in qkv)  # type: ignore[assignment]
        meta = [x.to("meta") for x in qkv]
        out, lse = smyrf.attention(*meta, layout=layout, return_lse=True)
        real, real_lse = smyrf.attention(*qkv, layout=layout, return_lse=True)
        assert out.device.type == lse.device.type == "meta"
        assert out.shape == real.shape == shape
        assert lse.shape == real_lse.shape == (2, 4, 33)
        assert (out.dtype, lse.dtype) == (real.dtype, real_lse.dtype)
        assert out.stride() == real.stride()
        with torch._subclasses.FakeTensorMode() as mode:
            fake = smyrf.attention(*(mode.from_tensor(x) for x in qkv), layout=layout)
        assert fake.shape == shape
        assert fake.device.type == "cpu"


def test_views_that_pytorch_reads_with_a_sign() -> None:
    query, key, value = tensors()
    negative = torch.complex(query, -query).conj().imag
    assert negative.is_neg()
    assert torch.equal(negative, query)
    expected = smyrf.attention(query, key, value)
    # Such views of complex numbers have no contiguous rows; these have.
    negated = torch._neg_view(-query)
    assert negated.is_neg()
    assert torch.equal(smyrf.attention(negated, key, value), expected)
    assert torch.equal(smyrf.attention(negated, key, value, return_stats=True)[0], expected)
    plans = [smyrf.plan(q, key, **LSH) for q in (query, negated)]
    assert plans[0].head(0, 0, 0) == plans[1].head(0, 0, 0)
    reference = smyrf.reference.attention(query, key, value)
    assert (smyrf.reference.attention(negated, key, value) == reference).all()
    with pytest.raises(TypeError, match=r"^out: is a view that is negated"):
        smyrf.attention(query, key, value, out=torch._neg_view(torch.empty(2, 4, 33, 8)))
    for options in ({}, {"return_stats": True}):
        with pytest.raises(TypeError, match=r"^query: got dtype complex64"):
            smyrf.attention(torch.complex(query, query).conj(), key, value, **options)


class Tagged(torch.Tensor):
    """A subclass that adds nothing, as libraries use to mark tensors."""


def test_parameters_and_subclasses_are_tensors() -> None:
    query, key, value = tensors()
    expected = smyrf.attention(query, key, value)
    parameter = torch.nn.Parameter(query)
    assert torch.equal(smyrf.attention(parameter, key, value), expected)
    reference = smyrf.reference.attention(query, key, value)
    assert (smyrf.reference.attention(parameter, key, value) == reference).all()
    tagged = query.as_subclass(Tagged)
    for options in ({}, {"return_stats": True}):
        result = smyrf.attention(tagged, key, value, **options)
        out = result[0] if options else result
        assert isinstance(out, Tagged)
        assert torch.equal(torch.Tensor(out), expected)
    assert torch.equal(smyrf.attention(query, key, value.as_subclass(Tagged)), expected)


def test_no_queries_no_keys_no_batch() -> None:
    query, key, value = tensors()
    for options in ({}, {"method": "lsh"}, {"return_stats": True}):
        for arrays, shape in (
            ((query[:, :, :0], key, value), (2, 4, 0, 8)),
            ((query[:0], key[:0], value[:0]), (0, 4, 33, 8)),
            ((query, key[:, :, :0], value[:, :, :0]), (2, 4, 33, 8)),
        ):
            out, lse = smyrf.attention(*arrays, **options, return_lse=True)[:2]
            assert out.shape == shape
            assert lse.shape == shape[:3]
            assert (out == 0).all()
            assert torch.isneginf(lse).all()
