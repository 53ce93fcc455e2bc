"""A bias on the logits (`position_bias` of T5 and others): relative to transformers' `sdpa`."""

from __future__ import annotations

import pytest
import torch
from small_models import assert_close, build, inputs_for, run, valid
from test_transformers_layer import assert_equals_sdpa, module, rows
from test_transformers_training import assert_near, gradients

import smyrf
import smyrf.transformers
from smyrf.integrations.transformers import forward

NO_GRADIENT = r"SelfAttention: got a position_bias or mask that requires a gradient.*'sdpa'.*freeze"


def full_mask(dtype: torch.dtype) -> torch.Tensor:
    allowed = rows(2, 1, 5, 7, seed=6) > -0.5
    allowed[..., 0] = True
    if dtype == torch.bool:
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("mask", [None, "padding", torch.bool, torch.float32])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_layers_bias_joins_its_mask_as_in_sdpa(
    mask: str | torch.dtype | None, causal: bool, batch: int
) -> None:
    q, (k, v) = rows(2, 4, 5, 8), rows(2, 2, 4, 7, 8, seed=3)
    bias = 2 * rows(batch, 4, 5, 7, seed=5)
    given = None
    if mask == "padding":
        given = torch.ones(2, 1, 1, 7, dtype=torch.bool)
        given[0, ..., 5:] = False
    elif isinstance(mask, torch.dtype):
        given = full_mask(mask)
    assert_equals_sdpa(module(is_causal=causal), q, k, v, given, position_bias=bias)
    grouped = module(is_causal=causal, num_key_value_groups=2)
    assert_equals_sdpa(grouped, q, k[:, :2], v[:, :2], given, position_bias=bias)
    one = (q[:, :, :1], k, v, None if given is None else given[:, :, :1])
    assert_equals_sdpa(module(is_causal=causal), *one, position_bias=bias[:, :, :1])


@pytest.mark.parametrize("name", ["T5", "UMT5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_with_a_bias_generate_the_tokens_of_sdpa(name: str, dtype: torch.dtype) -> None:
    kind = {"T5": "T5ForConditionalGeneration", "UMT5": "UMT5ForConditionalGeneration"}[name]
    model = build(name, kind).to(dtype)
    inputs = {key: x for key, x in inputs_for(name, "left").items() if "decoder" not in key}
    settings = {"max_new_tokens": 8, "do_sample": False, "output_logits": True}
    settings |= {"return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    want = model.generate(**inputs, **settings, decoder_start_token_id=0)
    smyrf.transformers.enable(model)
    got = model.generate(**inputs, **settings, decoder_start_token_id=0)
    off = (torch.stack(got.logits) - torch.stack(want.logits)).abs().max()
    assert off < (1e-4 if dtype == torch.float32 else 0.2) * torch.stack(want.logits).std()


def test_a_bias_that_needs_no_gradient_trains_with_the_gradients_of_sdpa() -> None:
    model, inputs = build("T5"), inputs_for("T5", "right")
    for name, weight in model.named_parameters():
        weight.requires_grad_("relative_attention_bias" not in name)

    want = gradients(model, inputs)
    smyrf.transformers.enable(model)
    assert_near(gradients(model, inputs), want)


def test_a_bias_that_needs_a_gradient_is_refused_where_it_is_needed() -> None:
    model, inputs = build("T5"), inputs_for("T5", "left")
    want = run(model, inputs)
    embedded = model.shared(inputs["input_ids"]).detach().requires_grad_()

    def by_inputs() -> torch.Tensor:
        out = model.encoder(inputs_embeds=embedded)[0]
        return torch.autograd.grad((out * rows(*out.shape)).sum(), embedded)[0]

    saliency = by_inputs()
    smyrf.transformers.enable(model)
    out = model(**inputs)[0]
    assert_close(valid(out.detach(), inputs), valid(want, inputs))
    with pytest.raises(NotImplementedError, match=NO_GRADIENT):
        out.sum().backward()
    assert_near({"inputs": by_inputs()}, {"inputs": saliency})
    model.train()
    with pytest.raises(NotImplementedError, match=NO_GRADIENT):
        model(**inputs)
    with torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize("method", ["tree", "lsh"])
def test_methods_that_take_no_bias_say_which_layers_to_leave_out(method: str) -> None:
    model, inputs = build("T5"), inputs_for("T5", "none")
    smyrf.transformers.enable(model, method=method)
    says = rf"SelfAttention: got position_bias, which method {method} .*layers=lambda.*'auto'"
    with pytest.raises(NotImplementedError, match=says):
        run(model, inputs)


def test_auto_takes_dense_for_a_bias_of_any_length() -> None:
    q = rows(1, 1, 2100, 8)
    with smyrf.collect() as records:
        forward.attention_forward(
            module(is_causal=False),
            q,
            q,
            q,
            None,
            position_bias=q[..., :1].expand(-1, -1, -1, 2100),
        )
    assert [record.statistics.method for record in records] == ["dense"]


def test_a_learned_mask_answers_where_no_gradient_of_it_is_asked_for() -> None:
    """As Swin's layers have it: in evaluation PyTorch keeps a graph, and nobody follows it."""
    layer = torch.nn.Module().eval()
    query, key, value = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    mask = torch.randn(1, 3, 7, 7, requires_grad=True)
    out, _ = forward.attention_forward(layer, query, key, value, mask)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(out, want.transpose(1, 2))
    got = torch.autograd.grad(out.sum(), query, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), query))
    with pytest.raises(NotImplementedError, match="mask that requires a gradient"):
        out.sum().backward()
    with pytest.raises(NotImplementedError, match="mask that requires a gradient"):
        forward.attention_forward(layer.train(), query, key, value, mask)
