"""Layers of transformers that deviate from the plain call: smyrf gives what `sdpa` gives.

Relative to transformers' own `sdpa` function for one layer's call, to `sdpa` and `eager` for small
models.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import pytest
import torch
import transformers
from small_models import BATCH, SIZES, assert_close, build, inputs_for, padding, run, tokens, valid
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import smyrf
import smyrf.transformers
from smyrf.integrations.transformers import forward
from smyrf.integrations.transformers.layers import Layer, keep

# What models and users hand on to layers, of no meaning to `sdpa`.
IGNORED: dict[str, Any] = {
    "token_type_ids": torch.zeros(2, 5, dtype=torch.long),
    "return_loss": True,
    "head_mask": torch.ones(4),
    "labels": torch.zeros(2, dtype=torch.long),
    "indices": torch.arange(5),
    "max_length_q": 3,
    "kernel_options": {"BLOCK_M": 32},
    "output_hidden_states": True,
    "a_keyword_of_tomorrow": 3,
}


def rows(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module(**attributes: Any) -> torch.nn.Module:
    layer = torch.nn.Module()
    for name, attribute in attributes.items():
        setattr(layer, name, attribute)
    return layer


def assert_equals_sdpa(layer: torch.nn.Module, *args: Any, **keywords: Any) -> None:
    want, _ = sdpa_attention_forward(layer, *args, **keywords)
    got, weights = forward.attention_forward(layer, *args, **keywords)
    assert weights is None
    assert got.is_contiguous()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keyword", IGNORED)
def test_a_layer_ignores_what_sdpa_ignores(keyword: str) -> None:
    q = rows(2, 4, 5, 8)
    assert_equals_sdpa(module(), q, q, q, None, **{keyword: IGNORED[keyword]})


def test_a_base_model_ignores_the_keywords_of_trainers() -> None:
    model, inputs = build("Llama").model, inputs_for("Llama", "left")
    more = {"labels": tokens(), "return_loss": True, "token_type_ids": tokens() % 2}
    want = run(model, inputs | more)
    smyrf.transformers.enable(model)
    assert_close(valid(run(model, inputs | more), inputs), valid(want, inputs))


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "sinks", "cache", "block_indices"])
def test_a_layer_refuses_what_changes_the_result(keyword: str) -> None:
    q = rows(2, 4, 5, 8)
    with pytest.raises(NotImplementedError, match=rf"^Module: got {keyword}, .*(use|generate)"):
        forward.attention_forward(module(), q, q, q, None, **{keyword: torch.ones(1)})
    assert_equals_sdpa(module(), q, q, q, None, **{keyword: None})


def test_asked_for_weights_a_layer_warns_once_and_answers(caplog: pytest.LogCaptureFixture) -> None:
    forward.logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    model, inputs = build("Bert"), inputs_for("Bert", "left")
    asked = inputs | {"output_attentions": True}
    want = model(**asked)
    smyrf.transformers.enable(model)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        got = model(**asked)
    assert_close(valid(got[0], inputs), valid(want[0], inputs))
    assert got.attentions == want.attentions
    assert [record.message for record in caplog.records] == [
        "smyrf never forms the attention weights: output_attentions=True gives None for them. "
        "Use attn_implementation='eager' to see them."
    ]


@pytest.mark.parametrize("full", [None, torch.bool, torch.float32])
def test_the_keys_that_an_indexer_chose_are_the_only_ones(full: torch.dtype | None) -> None:
    q, k = rows(2, 4, 5, 8), rows(2, 4, 7, 8, seed=3)
    chosen = rows(2, 5, 7).topk(3).indices
    chosen[..., 0] = 0
    allowed = torch.zeros(2, 5, 7, dtype=torch.bool).scatter(-1, chosen, True)[:, None]
    mask: torch.Tensor | None = None
    if full is not None:
        mask = torch.ones(1, 1, 5, 7, dtype=torch.bool).tril(2)
        allowed = allowed & mask
    if mask is not None and full == torch.float32:
        mask = torch.zeros(1, 1, 5, 7).masked_fill(~mask, torch.finfo(torch.float32).min)
    layer = module(is_causal=False)
    want, _ = sdpa_attention_forward(layer, q, k, k, allowed)
    got, _ = forward.attention_forward(layer, q, k, k, mask, indices=chosen.int())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_model_with_an_indexer_equals_eager() -> None:
    torch.manual_seed(7)
    sizes = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    sizes |= {"v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
    sizes |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    sizes |= {"moe_intermediate_size": 32, "first_k_dense_replace": 2}
    config = transformers.DeepseekV32Config(**SIZES, num_key_value_heads=4, **sizes)
    model = transformers.DeepseekV32ForCausalLM(config).eval()
    for side in ("none", "left"):
        inputs = inputs_for("Llama", side)
        model.set_attn_implementation("eager")
        want = run(model, inputs)
        model.set_attn_implementation("smyrf")
        assert_close(valid(run(model, inputs), inputs), valid(want, inputs))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT2", "Bart", "Bert", "ModernBert"])
def test_the_layers_is_causal_means_what_it_means_to_sdpa(
    name: str, side: str, causal: bool
) -> None:
    """`sdpa` follows it without a mask, and a mask where there is padding or a window."""
    model, inputs = build(name), inputs_for(name, side)
    as_built = run(model, inputs)
    for layer in model.modules():
        if hasattr(layer, "is_causal"):
            layer.is_causal = causal
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    assert_close(valid(run(model, inputs), inputs), valid(want, inputs))
    if side == "none" and name == ("Bert" if causal else "Llama"):
        assert (want - as_built).abs().max() > 1


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (5, 5), (5, 3), (1, 9)])
@pytest.mark.parametrize("causal", [True, False, None])
def test_without_a_mask_causality_is_that_of_sdpa(
    queries: int, keys: int, causal: bool | None
) -> None:
    q, (k, v) = rows(2, 4, queries, 8), rows(2, 2, 2, keys, 8, seed=3)
    for layer in (module(), module(is_causal=False), module(is_causal=True)):
        layer.num_key_value_groups = 2  # type: ignore[assignment]
        assert_equals_sdpa(layer, q, k, v, None, is_causal=causal)


def test_masks_of_a_layer_are_for_four_dimensions_and_hold_the_window() -> None:
    q, k = rows(2, 4, 5, 8), rows(2, 4, 5, 8, seed=3)
    shared = rows(1, 1, 1, 5) > -0.4
    assert_equals_sdpa(module(), q, k, k, shared)
    with pytest.raises(NotImplementedError, match="sliding_window=4 and no mask"):
        forward.attention_forward(module(), q, k, k, None, sliding_window=4)
    with pytest.raises(NotImplementedError, match=r"shape \(2, 5\)"):
        forward.attention_forward(module(), q, k, k, torch.ones(2, 5, dtype=torch.bool))


def prefix(model: Any, length: int = 3) -> transformers.DynamicCache:
    """Past keys and values, as prefix tuning makes them."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = (BATCH, heads, length, config.hidden_size // config.num_attention_heads)
    pairs = [(rows(*size, seed=10 + i), rows(*size, seed=20 + i)) for i in range(2)]
    return transformers.DynamicCache(pairs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "Llama", "LlamaBothWays"])
def test_a_prefix_in_the_cache_gives_what_sdpa_gives(name: str, masked: bool) -> None:
    model, inputs = build(name), inputs_for(name, "none")
    keep = padding("right")
    if masked:
        inputs["attention_mask"] = torch.cat((torch.ones(BATCH, 3, dtype=torch.long), keep), 1)
    want = run(model, inputs | {"past_key_values": prefix(model)})
    without = run(model, {key: x for key, x in inputs.items() if key != "attention_mask"})
    smyrf.transformers.enable(model)
    got = run(model, inputs | {"past_key_values": prefix(model)})
    if masked:
        got, want, without = (x[keep.bool()] for x in (got, want, without))
    assert_close(got, want)
    assert (got - without).abs().max() > 0.05


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((3, 4), (1, 4), (1, 4)),
        ((1, 4), (3, 4), (3, 4)),
        ((3, 4), (1, 4), (3, 4)),
        ((1, 4), (1, 4), (3, 4)),
        ((3, 4), (3, 1), (3, 1)),
        ((3, 1), (3, 4), (3, 4)),
        ((3, 4), (3, 4), (3, 1)),
        ((3, 4), (3, 1), (1, 4)),
        ((1, 4), (1, 4), (1, 4)),
    ],
)
def test_batches_and_heads_of_one_stand_for_all(
    query: tuple[int, int], key: tuple[int, int], value: tuple[int, int]
) -> None:
    q, k, v = rows(*query, 5, 8), rows(*key, 7, 8, seed=3), rows(*value, 7, 8, seed=4)
    layer = module(is_causal=False)
    batch = max(query[0], key[0], value[0])
    assert_equals_sdpa(layer, q, k, v, None)
    for shape in {(1, 1, 1, 7), (batch, 1, 1, 7), (batch, 1, 5, 7), (1, 4, 5, 7), (1, 1, 5, 1)}:
        if query[0] == key[0] == batch and query[1] == 4:  # otherwise SDPA refuses some
            assert_equals_sdpa(layer, q, k, v, rows(*shape, seed=5) > -0.7)
    assert_equals_sdpa(layer, q, k, v, rows(1, 1, 1, 7, seed=5) > -0.7)
    assert_equals_sdpa(module(is_causal=True), q, k, v, None)


def test_grouped_keys_of_one_batch_stand_for_all() -> None:
    q, (k, v) = rows(3, 4, 5, 8), rows(2, 1, 2, 7, 8, seed=3)
    for mask in (None, rows(1, 1, 5, 7, seed=5) > -0.7, rows(3, 1, 1, 7, seed=5) > -0.7):
        assert_equals_sdpa(module(num_key_value_groups=2, is_causal=False), q, k, v, mask)


@pytest.mark.parametrize("method", ["lsh", "tree"])
def test_padding_of_one_batch_stands_for_all(method: str) -> None:
    q, k = rows(3, 2, 70, 8), rows(1, 2, 70, 8, seed=3)
    padding = torch.ones(1, 1, 1, 70, dtype=torch.bool)
    padding[..., 60:] = False
    layer = module(is_causal=False)
    model = torch.nn.ModuleDict({"layer": layer})
    dials: dict[str, Any] = {"cluster_size": 16} if method == "lsh" else {"tolerance": 0.3}
    keep(layer, Layer("layer", method, dials, False, weakref.ref(model)))
    got, _ = forward.attention_forward(layer, q, k, k, padding)
    each = [forward.attention_forward(layer, q[i : i + 1], k, k, padding)[0] for i in range(3)]
    torch.testing.assert_close(got, torch.cat(each))
