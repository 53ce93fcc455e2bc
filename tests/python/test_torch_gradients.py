"""Gradients of the PyTorch operator: against the float64 reference, and where there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_real_heads import head
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import smyrf
from smyrf import _core

Tensors = tuple[torch.Tensor, ...]
LSH = {"method": "lsh", "n_hashes": 3, "cluster_size": 8}
TREE = {"method": "tree", "tolerance": 0.3, "max_density": 0.6}


def rows(
    queries: int = 33,
    keys: int = 50,
    heads: int = 4,
    key_heads: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """query (2, heads, queries, 16), key and value (2, key_heads, keys, 16 and 8)."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, queries, 16), (key_heads, keys, 16), (key_heads, keys, 8))
    tensors = (torch.randn(2, *shape, generator=generator).to(dtype) for shape in shapes)
    return tuple(x.requires_grad_() for x in tensors)


def smooth_rows(heads: int = 4, key_heads: int = 2) -> Tensors:
    """Points of a plane with values that are a smooth function of them: summaries do."""
    generator = torch.Generator().manual_seed(3)
    plane, waves = torch.randn(2, 2, 16, generator=generator)
    of_query = torch.randn(2, heads, 200, 2, generator=generator)
    of_key = torch.randn(2, key_heads, 300, 2, generator=generator)
    noise = 0.3 * torch.randn(2, key_heads, 300, 16, generator=generator)
    result = of_query @ plane, of_key @ plane + noise, 1 + (of_key @ waves).sin()
    return tuple(x.detach().requires_grad_() for x in result)


GENERATOR = torch.Generator().manual_seed(1)
SOME = torch.rand(33, 50, generator=GENERATOR) < 0.7
SOME[5] = False
BIAS = torch.randn(2, 1, 33, 50, generator=GENERATOR).masked_fill(~SOME, -torch.inf)
PADDING = {
    "key_padding_mask": torch.arange(50) < torch.tensor([[50], [41]]),
    "query_padding_mask": torch.arange(33) >= torch.tensor([[4], [0]]),
}
CASES: dict[str, tuple[Callable[..., Tensors], dict[str, Any], dict[str, Any]]] = {
    "dense": (rows, {}, {"method": "dense"}),
    "one query": (rows, {"queries": 1, "keys": 300}, {}),
    "few queries, long keys": (rows, {"queries": 3, "keys": 4200}, {"scale": 0.6}),
    "many rows": (rows, {"queries": 260, "keys": 300}, {"is_causal": True}),
    "bool mask": (rows, {}, {"attn_mask": SOME}),
    "float mask": (rows, {}, {"attn_mask": BIAS}),
    "blind rows": (rows, {"queries": 50, "keys": 33}, {"is_causal": True}),
    "window": (rows, {}, {"window": (5, 2)}),
    "padding": (rows, {}, PADDING),
    "all masks": (
        rows,
        {"key_heads": 2},
        {"attn_mask": BIAS, "is_causal": True, "window": (20, -1), "enable_gqa": True, **PADDING},
    ),
    "lsh": (rows, {}, LSH),
    "lsh, 1 round": (rows, {"queries": 130, "keys": 90}, {**LSH, "n_hashes": 1, "seed": 5}),
    "lsh, grouped and padded": (rows, {"key_heads": 1}, {**LSH, "enable_gqa": True, **PADDING}),
    "tree": (smooth_rows, {}, {**TREE, "enable_gqa": True}),
    "tree, padded": (
        smooth_rows,
        {"key_heads": 4},
        {
            **TREE,
            "key_padding_mask": torch.arange(300) < torch.tensor([[300], [270]]),
            "query_padding_mask": torch.arange(200) >= torch.tensor([[17], [0]]),
        },
    ),
    "tree, dense heads": (rows, {"queries": 140, "keys": 150}, {**TREE, "max_density": None}),
}
# Both gradients in float32 against float64; narrow ones are rounded once, but so is what they
# come from: out enters Delta as it is stored.
BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def weights_like(out: torch.Tensor, layout: str = "BHND") -> torch.Tensor:
    """Numbers that every dtype holds, the same in every layout."""
    shape = out.transpose(1, 2).shape if layout == "BNHD" else out.shape
    weights = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(2)) / 8
    return (weights.transpose(1, 2) if layout == "BNHD" else weights).to(out.dtype)


def gradients(call: Callable[..., Any], inputs: Tensors, **options: Any) -> Tensors:
    """Of a loss in which each number of out and lse has a weight of its own."""
    out, lse = call(*inputs, **options, return_lse=True)
    weights = weights_like(out, options.get("layout", "BHND")), weights_like(lse)
    return torch.autograd.grad((out, lse), inputs, weights)


def plan_of(inputs: Tensors, attn_mask: Any = None, **options: Any) -> smyrf.Plan:
    query, key, value = (x.detach() for x in inputs)
    return smyrf.plan(query, key, value, attn_mask, **options)


def exact_gradients(inputs: Tensors, plan: smyrf.Plan, **options: Any) -> Tensors:
    doubles = tuple(x.detach().double().requires_grad_() for x in inputs)
    return gradients(smyrf.reference.attention, doubles, **options, plan=plan)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def assert_equal(got: Tensors, want: Tensors) -> None:
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_reference(case: str, dtype: torch.dtype) -> None:
    make, shape, options = CASES[case]
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in make(**shape))
    plan = plan_of(inputs, **options)
    if plan.method == "tree":
        summaries = [any(plan.nodes(b, h)) for b in range(2) for h in range(4)]
        assert all(summaries) if case != "tree, dense heads" else plan.dense_heads.all()
    want = exact_gradients(inputs, plan, **options)
    for layout in ("BHND", "BNHD"):
        given = inputs
        if layout == "BNHD":
            given = tuple(x.detach().transpose(1, 2).requires_grad_() for x in inputs)
        for name, x, found, exact in zip(
            ("query", "key", "value"),
            given,
            gradients(smyrf.attention, given, **options, layout=layout),
            want,
            strict=True,
        ):
            assert found.dtype == dtype
            assert found.shape == x.shape
            found = found.transpose(1, 2) if layout == "BNHD" else found
            assert error(found, exact) < BOUNDS[dtype], (name, layout)
            assert (found[exact == 0] == 0).all()


@pytest.mark.parametrize("case", ["dense", "all masks", "lsh", "tree"])
def test_a_plan_and_statistics_change_no_gradient(case: str) -> None:
    make, shape, options = CASES[case]
    inputs = make(**shape)
    want = gradients(smyrf.attention, inputs, **options)
    plan = plan_of(inputs, **options)
    for given in ({"plan": plan}, {"return_stats": True}, {"plan": plan, "return_stats": True}):

        def call(*rows: torch.Tensor, given: Any = given, **options: Any) -> Any:
            return smyrf.attention(*rows, **options, **given)[:2]

        assert_equal(gradients(call, inputs, **options), want)


@pytest.mark.parametrize("method", ["auto", "tree"])
def test_the_plan_is_kept_for_one_backward(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(x.repeat(1, 1, 11, 1).detach().requires_grad_() for x in smooth_rows(2, 2))
    options = {"method": method, "tolerance": 0.2}
    out = smyrf.attention(*inputs, **options)
    plans = []
    backward = _core.attention_backward
    monkeypatch.setattr(
        _core, "attention_backward", lambda *given: (plans.append(given[10]), backward(*given))
    )
    for _ in range(2):  # the second plans again
        torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    assert plans[0].method == "tree"
    assert not plans[0].dense_heads.any()
    assert plans[1] is None
    schema = torch.ops.smyrf.attention.default._schema
    defaults = {
        "is_causal": False, "enable_gqa": False, "seed": 0, "layout": "BHND", "dropout_p": 0.0
    } | options  # fmt: skip
    values = [defaults.get(argument.name) for argument in schema.arguments[3:]]

    def operator(*rows: torch.Tensor, return_lse: bool) -> Any:
        return torch.ops.smyrf.attention(*rows, *values)

    assert torch.equal(out, operator(*inputs, return_lse=True)[0])
    assert_equal(gradients(smyrf.attention, inputs, **options), gradients(operator, inputs))


def test_auto_is_dense_where_a_gradient_is_needed_but_takes_a_plan() -> None:
    inputs = tuple(x[:1, :1].repeat(1, 1, 11, 1).detach().requires_grad_() for x in smooth_rows())
    assert min(x.shape[2] for x in inputs) >= 2048
    did = smyrf.attention(*inputs, return_stats=True)[1]
    assert did.method == "dense"
    assert "gradient" in did.reason
    exact = gradients(smyrf.attention, inputs, method="dense")
    assert_equal(gradients(smyrf.attention, inputs), exact)
    with torch.no_grad():
        assert smyrf.attention(*inputs, return_stats=True)[1].method == "tree"
    query, key, value = inputs
    plan = smyrf.plan(query, key, value=value)
    out, did = smyrf.attention(*inputs, plan=plan, return_stats=True)
    assert did.method == "tree"
    out.sum().backward()
    assert all(x.grad is not None for x in inputs)
    assert_equal(
        gradients(smyrf.attention, inputs, plan=plan),
        gradients(smyrf.attention, inputs, method="tree", tolerance=0.05),
    )


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_threads_gives_the_same_bits(case: str) -> None:
    make, shape, options = CASES[case]
    inputs = make(**shape)
    want = gradients(smyrf.attention, inputs, **options, num_threads=1)
    for threads in (2, 5):
        assert_equal(gradients(smyrf.attention, inputs, **options, num_threads=threads), want)


def test_gradients_of_out_or_lse_alone() -> None:
    inputs = rows()
    out, lse = smyrf.attention(*inputs, return_lse=True)
    exact_out, exact_lse = smyrf.reference.attention(
        *(doubles := tuple(x.detach().double().requires_grad_() for x in inputs)), return_lse=True
    )
    for loss, exact in ((out.sum(), exact_out.sum()), (lse.sum(), exact_lse.sum())):
        found = torch.autograd.grad(loss, inputs, retain_graph=True)
        want = torch.autograd.grad(exact, doubles, retain_graph=True, allow_unused=True)
        for one, other in zip(found, want, strict=True):
            if other is None:
                assert (one == 0).all()
            else:
                assert error(one, other) < 1e-5


@pytest.mark.parametrize("which", range(3), ids=["query", "key", "value"])
def test_one_input_that_requires_a_gradient_is_enough(which: int) -> None:
    inputs = rows()
    want = gradients(smyrf.attention, inputs)[which]
    for options in ({}, {"plan": plan_of(inputs)}):
        alone = [x.detach() for x in inputs]
        alone[which].requires_grad_()
        out, lse = smyrf.attention(*alone, **options, return_lse=True)
        torch.autograd.backward((out, lse), (weights_like(out), weights_like(lse)))
        assert torch.equal(alone[which].grad, want)
        assert [x.grad is None for x in alone].count(False) == 1


def test_one_tensor_in_three_roles() -> None:
    x = rows()[1].detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    smyrf.attention(x, x, x).square().sum().backward()
    smyrf.reference.attention(exact, exact, exact).square().sum().backward()
    assert error(x.grad, exact.grad) < 1e-5


@pytest.mark.parametrize("case", ["dense", "lsh", "tree"])
def test_memory_of_inputs_and_gradients_does_not_matter(case: str) -> None:
    make, shape, options = CASES[case]
    inputs = make(**shape)
    out = smyrf.attention(*inputs, **options)
    weights = weights_like(out)
    want = torch.autograd.grad(out, inputs, weights)

    def heads_inside(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def wide(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x), 3)[..., : x.shape[3]]

    def every_other(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2)[:, :, ::2]

    for memory in (heads_inside, wide, every_other):
        given = tuple(memory(x.detach()).requires_grad_() for x in inputs)
        found = torch.autograd.grad(smyrf.attention(*given, **options), given, memory(weights))
        assert_equal(found, want)
    # The gradient of a sum is one number, expanded, and that of a transposed use has other strides.
    out = smyrf.attention(*inputs, **options)
    ones = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    assert_equal(torch.autograd.grad(out.sum(), inputs), ones)
    out = smyrf.attention(*inputs, **options)
    assert_equal(torch.autograd.grad(out, inputs, weights.mT.contiguous().mT), want)
    # An expanded input is a sum over its copies.
    key = inputs[1].detach()[:, :, :1].requires_grad_()
    shared = key.expand(inputs[1].shape)
    grad = torch.autograd.grad(smyrf.attention(inputs[0], shared, inputs[2], **options).sum(), key)
    assert grad[0].shape == key.shape


@pytest.mark.parametrize("options", [{}, LSH], ids=["dense", "lsh"])
def test_padded_rows_are_not_read_and_their_gradient_is_0(options: dict[str, Any]) -> None:
    inputs = rows()
    want = gradients(smyrf.attention, inputs, **options, **PADDING)
    spoiled = tuple(x.detach().clone() for x in inputs)
    spoiled[0][~PADDING["query_padding_mask"][:, None].expand(-1, 4, -1)] = torch.nan
    for x in spoiled[1:]:
        x[~PADDING["key_padding_mask"][:, None].expand(-1, 4, -1)] = torch.inf
    found = gradients(
        smyrf.attention, tuple(x.requires_grad_() for x in spoiled), **options, **PADDING
    )
    assert_equal(found, want)
    assert (found[0][0, :, :4] == 0).all()
    assert (found[1][1, :, 41:] == 0).all()
    assert (found[2][1, :, 41:] == 0).all()


def test_no_queries_no_keys_no_batch() -> None:
    query, key, value = rows()
    for options in ({"method": "dense"}, LSH):
        for inputs in (
            (query[:, :, :0], key, value),
            (query[:0], key[:0], value[:0]),
            (query, key[:, :, :0], value[:, :, :0]),
        ):
            leaves = tuple(x.detach().requires_grad_() for x in inputs)
            for x, gradient in zip(
                leaves, gradients(smyrf.attention, leaves, **options), strict=True
            ):
                assert gradient.shape == x.shape
                assert (gradient == 0).all()


# Inductor does not quote PyTorch's folder when it calls the compiler.
inductor = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(" " in torch.__file__, reason="inductor fails below such a path"),
)


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.parametrize("case", ["all masks", "lsh", "tree"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager(backend: str, case: str) -> None:
    torch._dynamo.reset()
    make, shape, options = CASES[case]
    inputs = make(**shape)

    def model(query: Any, key: Any, value: Any, **options: Any) -> Any:
        out, lse = smyrf.attention(2 * query, key, value, **options)
        return out + 1, lse

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_equal(gradients(compiled, inputs, **options), gradients(model, inputs, **options))


@pytest.mark.parametrize("case", ["dense", "lsh", "tree"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(case: str, use_reentrant: bool) -> None:
    make, shape, options = CASES[case]
    inputs = make(**shape)

    def model(*rows: torch.Tensor, return_stats: bool = False) -> torch.Tensor:
        result = smyrf.attention(*rows, **options, return_stats=return_stats)
        return (result[0] if return_stats else result).square()

    want = torch.autograd.grad(model(*inputs).sum(), inputs)
    for return_stats in (False, True):
        call = functools.partial(model, return_stats=return_stats)
        checkpoint(call, *inputs, use_reentrant=use_reentrant).sum().backward()
        assert_equal(tuple(x.grad for x in inputs), want)
        for x in inputs:
            x.grad = None


def test_autocast_gives_gradients_of_the_inputs_dtype() -> None:
    inputs = rows()
    narrow = tuple(x.detach().bfloat16().requires_grad_() for x in inputs)
    want = torch.autograd.grad(smyrf.attention(*narrow).float().square().sum(), narrow)
    for options in ({}, {"return_stats": True}):
        with torch.autocast("cpu", torch.bfloat16):
            result = smyrf.attention(*inputs, **options)
            out = result[0] if options else result
            loss = out.float().square().sum()
        assert out.dtype == torch.bfloat16
        found = torch.autograd.grad(loss, inputs)
        assert all(x.dtype == torch.float32 for x in found)
        assert_equal(found, tuple(x.float() for x in want))


def test_a_mask_that_requires_a_gradient_raises() -> None:
    query, key, value = (x.detach() for x in rows())
    mask = torch.zeros(33, 50, requires_grad=True)
    for options in ({}, {"return_stats": True}, {"plan": smyrf.plan(query, key, attn_mask=mask)}):
        with pytest.raises(NotImplementedError, match=r"^attn_mask: requires a gradient.*detach"):
            smyrf.attention(query, key, value, mask, **options)
        with torch.no_grad():
            smyrf.attention(query, key, value, mask, **options)
    with pytest.raises(NotImplementedError, match=r"^attn_mask: requires a gradient"):
        torch.ops.smyrf.attention(
            *(query, key, value, mask, None, None, False, None, False, "dense"),
            *(None, None, None, None, 0, None, "BHND", None, 0.0, None, "auto"),
        )


def test_forward_mode_raises() -> None:
    query, key, value = (x.detach() for x in rows())
    says = r"^smyrf\.attention has no forward-mode derivative; use reverse mode"
    with pytest.raises(NotImplementedError, match=says):
        torch.func.jvp(lambda x: smyrf.attention(x, key, value), (query,), (query,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=says):
        smyrf.attention(query, key, forward_ad.make_dual(value, value))
    mask = torch.zeros(33, 50)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=says):
        smyrf.attention(query, key, value, forward_ad.make_dual(mask, mask), return_stats=True)


def test_second_derivatives_raise() -> None:
    inputs = rows()
    for options in ({}, {"plan": plan_of(inputs)}, {"return_lse": True, "return_stats": True}):
        result = smyrf.attention(*inputs, **options)
        out = result[0] if isinstance(result, tuple) else result
        # Of a sum: the gradient depends on the inputs alone.
        (gradient,) = torch.autograd.grad(out.sum(), inputs[:1], create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative; leave create_graph"):
            gradient.square().sum().backward()


def test_out_takes_no_part_in_gradients() -> None:
    inputs = rows()
    out = torch.empty(2, 4, 33, 8)
    with pytest.raises(NotImplementedError, match=r"^out gives no gradient; leave it out"):
        smyrf.attention(*inputs, out=out)
    with torch.no_grad():
        smyrf.attention(*inputs, out=out)
    with pytest.raises(NotImplementedError, match=r"^out gives no gradient"):
        smyrf.attention(*(x.detach() for x in inputs), out=out.requires_grad_())


def test_an_out_that_is_changed_before_backward_is_noticed() -> None:
    inputs = rows()
    for options in ({}, {"plan": plan_of(inputs)}):
        out = smyrf.attention(*inputs, **options)
        out.detach().zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@pytest.mark.parametrize("name", ["whisper-0-5", "smollm2-7-2"])
def test_gradients_of_tree_are_near_those_of_dense_on_real_heads(name: str) -> None:
    """Approximate: no tolerance is promised for gradients."""
    inputs = tuple(torch.from_numpy(x).requires_grad_() for x in head(name))

    def found(**options: Any) -> Tensors:
        out = smyrf.attention(*inputs, **options)
        return torch.autograd.grad(out, inputs, weights_like(out))

    want = found(method="dense")
    errors = [
        [error(x, y) for x, y in zip(found(method="tree", tolerance=t), want, strict=True)]
        for t in (0.05, 0.2)
    ]
    for near, far in zip(*errors, strict=True):
        assert 0 < near < far < 1


@pytest.mark.parametrize("options", [LSH, TREE], ids=["lsh", "tree"])
def test_training_lowers_a_loss(options: dict[str, Any]) -> None:
    """Queries and keys learn to find the value that belongs to each query."""
    generator = torch.Generator().manual_seed(6)
    codes = torch.randn(1, 2, 256, 16, generator=generator)
    noise = torch.randn(codes.shape, generator=generator)
    layer = torch.nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.eye(16))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for step in range(30):
        query = layer(codes + 0.3 * noise)
        out = smyrf.attention(query, layer(codes), codes, scale=1.0, seed=step, **options)
        loss = (out - codes).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_row_of_the_lowest_floats_and_infinities_has_finite_gradients() -> None:
    # Models that add two masks pad so: minimum plus minimum is -inf.
    q, k, v = (torch.randn(1, 5, 2, 8, requires_grad=True) for _ in range(3))
    mask = torch.full((5, 5), torch.finfo(torch.float32).min)
    mask[:, 3] = -torch.inf
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask
    )
    got = smyrf.attention(q, k, v, attn_mask=mask, layout="BNHD", method="dense")
    weights = torch.randn_like(got)
    expected = torch.autograd.grad(want.transpose(1, 2), (q, k, v), weights)
    gradients = torch.autograd.grad(got, (q, k, v), weights)
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)
