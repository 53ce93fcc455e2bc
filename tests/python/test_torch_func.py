"""Framework: transforms of torch.func, nested, sparse and quantized tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vjp, vmap
from torch.nn.functional import scaled_dot_product_attention

import smyrf

QUERY, KEY, VALUE = torch.randn(3, 2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
BOTH = torch.stack([QUERY, 2 * QUERY])
SEEN = torch.ones(9, 9, dtype=torch.bool).tril()
Attend = Callable[..., torch.Tensor]


def loss(attend: Attend) -> Callable[..., torch.Tensor]:
    return lambda *arguments, **options: attend(*arguments, **options).square().sum()


def of_vmapped(attend: Attend) -> Any:
    inputs = [x.clone().requires_grad_() for x in (QUERY, KEY, VALUE)]
    return torch.autograd.grad(loss(vmap(attend))(*inputs), inputs)


OVER_BOTH = {"in_dims": (0, None, None)}
WORKS: dict[str, Callable[[Attend], Any]] = {
    "grad": lambda f: grad(loss(f), argnums=(0, 1, 2))(QUERY, KEY, VALUE),
    "grad, mask": lambda f: grad(lambda q: loss(f)(q, KEY, VALUE, SEEN))(QUERY),
    "grad, broadcast": lambda f: grad(loss(f), argnums=(0, 1))(QUERY, KEY[:1], VALUE[:, :1]),
    "vjp": lambda f: vjp(f, QUERY, KEY, VALUE)[1](VALUE),
    "vmap": lambda f: vmap(f, **OVER_BOTH)(BOTH, KEY, VALUE),
    "vmap, three": lambda f: vmap(f)(QUERY, KEY, VALUE),
    "vmap of grad": lambda f: vmap(grad(loss(f), argnums=(0, 1, 2)))(QUERY, KEY, VALUE),
    "grad of vmap": lambda f: grad(lambda q: loss(vmap(f, **OVER_BOTH))(q, KEY, VALUE))(BOTH),
    "jacrev": lambda f: jacrev(lambda q: f(q, KEY, VALUE).sum((1, 2, 3)))(QUERY),
    "autograd of vmap": of_vmapped,
}


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_that_work(name: str) -> None:
    results = [WORKS[name](f) for f in (smyrf.attention, scaled_dot_product_attention)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_the_transforms_that_do_not_say_so() -> None:
    def call(query: torch.Tensor) -> torch.Tensor:
        return loss(smyrf.attention)(query, KEY, VALUE)

    for transform, words in (
        (lambda: jacfwd(call)(QUERY), "no forward-mode derivative; use reverse mode"),
        (lambda: hessian(call)(QUERY), "no forward-mode derivative; use reverse mode"),
        (lambda: grad(lambda q: grad(call)(q).sum())(QUERY), "no second derivative"),
    ):
        with pytest.raises(NotImplementedError, match=words):
            transform()
    for options in ({"return_stats": True}, {"out": torch.empty(2, 3, 9, 8)}):
        with pytest.raises(TypeError, match=r"call without plan, out and return_stats there"):
            vmap(lambda q, options=options: smyrf.attention(q, KEY, VALUE, **options)[0])(BOTH)


def nested(layout: torch.layout) -> torch.Tensor:
    rows = [torch.randn(n, 3, 8) for n in (4, 9)]
    return torch.nested.nested_tensor(rows, layout=layout).transpose(1, 2)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:.*nested tensors", "ignore:.*jit.script")
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    ragged = nested(layout)
    words = r"got a nested tensor, expected a padded one; call .to_padded_tensor\(0.0\)"
    for arguments, name in (
        ((ragged, ragged, ragged), "query"),
        ((QUERY, ragged, VALUE), "key"),
        ((QUERY, KEY, ragged), "value"),
    ):
        for call in (
            lambda a=arguments: smyrf.attention(*a),
            lambda a=arguments: smyrf.attention(*a, return_stats=True),
            lambda a=arguments: smyrf.plan(*a),
            lambda a=arguments: smyrf.estimate(*a),
            lambda a=arguments: smyrf.reference.attention(*a),
        ):
            with pytest.raises(TypeError, match=f"^{name}: {words}"):
                call()
    with pytest.raises(TypeError, match=f"^attn_mask: {words}"):
        smyrf.attention(QUERY, KEY, VALUE, ragged)


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:Sparse CSR")
def test_dtypes_that_are_refused() -> None:
    for call in (smyrf.attention, smyrf.plan, smyrf.estimate, smyrf.reference.attention):
        for convert, words in (
            (
                lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
                r"call .dequantize\(\)",
            ),
            (lambda x: x.to(torch.complex64), "got dtype complex64, expected float32"),
            (lambda x: x.long(), "got dtype int64, expected float32"),
            (lambda x: x.to_sparse(), r"got a torch.sparse_coo tensor .*call .cpu\(\)"),
            (lambda x: x[0, 0].to_sparse_csr(), r"got a torch.sparse_csr tensor .*call .cpu\(\)"),
            (lambda x: x[0, 0].to_mkldnn(), r"got a torch._mkldnn tensor .*call .cpu\(\)"),
            (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn|dtype"),
        ):
            with pytest.raises(TypeError, match=rf"^query: .*{words}"):
                call(*(convert(x) for x in (QUERY, KEY, VALUE)))
    with pytest.raises(TypeError, match=r"^query: got dtype float64, .*smyrf.reference.attention"):
        smyrf.attention(*(x.double() for x in (QUERY, KEY, VALUE)))
