"""Models of transformers with smyrf's attention: framework tests, relative to their own `sdpa`.

Small models carry the semantics (masks, caches, gradients, compilation), MiniLM's real weights
what is said about error.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_models import (
    BATCH,
    LENGTH,
    MODELS,
    assert_close,
    build,
    features,
    inputs_for,
    padding,
    run,
    tokens,
    valid,
)

import smyrf
import smyrf.transformers
from smyrf.compare.models import find_model, load_model

PADDED = [
    (name, side)
    for name in MODELS
    if name != "Gemma2"
    for side in (("none",) if name == "ViT" else ("none", "right", "left"))
]


@pytest.mark.parametrize(("name", "side"), PADDED)
def test_dense_equals_sdpa_at_valid_positions_and_switches_back(name: str, side: str) -> None:
    model, inputs = build(name), inputs_for(name, side)
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    with smyrf.collect() as records:
        got = run(model, inputs)
    smyrf.transformers.disable(model)
    assert {record.layer for record in records} == set(smyrf.transformers.enable(model))
    smyrf.transformers.disable(model)
    assert_close(valid(got, inputs), valid(want, inputs))
    with smyrf.collect() as records:
        assert torch.equal(run(model, inputs), want)
    assert not records


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Whisper", "ViT", "Llama"])
def test_models_load_with_the_registered_name(name: str) -> None:
    kind, settings = MODELS[name]
    config = getattr(transformers, kind).config_class(**settings, attn_implementation="smyrf")
    torch.manual_seed(7)
    model = getattr(transformers, kind)(config).eval()
    side = "none" if name == "ViT" else "left"
    inputs = inputs_for(name, side)
    with smyrf.collect() as records:
        got = run(model, inputs)
    assert records
    assert {record.statistics.method for record in records} == {"dense"}
    assert_close(valid(got, inputs), valid(run(build(name), inputs), inputs))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPT2", "Whisper", "Llama4"])
def test_generate_gives_the_tokens_of_sdpa(name: str, cache: str) -> None:
    model = build(name)
    inputs: dict[str, Any] = {"input_ids": tokens(), "attention_mask": padding("left")}
    if name == "Whisper":
        inputs = {"input_features": features()}
    settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True}
    settings |= {"return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    if cache == "static":
        settings["cache_implementation"] = "static"
    want = model.generate(**inputs, **settings)
    smyrf.transformers.enable(model)
    with smyrf.collect() as records:
        got = model.generate(**inputs, **settings)
    assert any(record.shape.queries == 1 for record in records)
    assert torch.equal(got.sequences, want.sequences)
    assert_close(torch.stack(got.logits), torch.stack(want.logits))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_several_queries_after_a_filled_cache(name: str, cache: str) -> None:
    model = build(name)
    ids, mask = tokens(), padding("left")

    def halves() -> torch.Tensor:
        if cache == "static":
            past: Any = transformers.StaticCache(config=model.config, max_cache_len=20)
        else:
            past = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :6], attention_mask=mask[:, :6], past_key_values=past)
            logits: torch.Tensor = model(ids[:, 6:], attention_mask=mask, past_key_values=past)[0]
        return logits

    want = halves()
    smyrf.transformers.enable(model)
    with smyrf.collect() as records:
        got = halves()
    # A static cache's unused rows are cut off, not masked; a sliding one keeps window - 1 keys.
    assert records[-1].shape.keys == {"Llama": LENGTH, "Mistral": 3 + 5}[name]
    assert_close(got[mask[:, 6:].bool()], want[mask[:, 6:].bool()])


def test_a_4d_mask_from_the_user_reaches_dense() -> None:
    model = build("Bert")
    allowed = torch.rand(BATCH, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed |= torch.eye(LENGTH, dtype=torch.bool)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (allowed, bias):
        inputs = {"input_ids": tokens(), "attention_mask": mask}
        want = run(model, inputs)
        smyrf.transformers.enable(model)
        got = run(model, inputs)
        smyrf.transformers.disable(model)
        assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Bert", "Llama"])
def test_half_precision_keeps_its_dtype_and_its_accuracy(name: str, dtype: torch.dtype) -> None:
    model, inputs = build(name), inputs_for(name, "left")
    exact = valid(run(model, inputs), inputs)
    model.to(dtype)
    off = (valid(run(model, inputs), inputs) - exact).abs().max()
    smyrf.transformers.enable(model)
    got = run(model, inputs)
    assert got.dtype == dtype
    assert (valid(got, inputs) - exact).abs().max() < 1.5 * off
    bias = torch.zeros(BATCH, 1, LENGTH, LENGTH, dtype=dtype)
    bias = bias.masked_fill(padding("left")[:, None, None] == 0, torch.finfo(dtype).min)
    if name == "Bert":
        full = run(model, {"input_ids": tokens(), "attention_mask": bias})
        assert (valid(full, inputs) - exact).abs().max() < 1.5 * off


def test_autocast_runs_attention_in_its_dtype() -> None:
    model, inputs = build("Bert"), inputs_for("Bert", "left")
    exact = valid(run(model, inputs), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        off = (valid(run(model, inputs), inputs) - exact).abs().max()
        smyrf.transformers.enable(model)
        got = valid(run(model, inputs), inputs)
    assert 0 < (got - exact).abs().max() < 1.5 * off


@pytest.mark.parametrize("side", ["right", "left"])
def test_lsh_padded_batch_equals_one_by_one(side: str) -> None:
    model, mask = build("Bert"), padding(side)
    ids = tokens()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    smyrf.transformers.enable(model, method="lsh", n_hashes=1, cluster_size=2)
    with torch.no_grad(), smyrf.collect() as records:
        batch = model(ids, attention_mask=mask, position_ids=positions)[0]
    assert {record.statistics.method for record in records} == {"lsh"}
    for row in range(BATCH):
        keep = mask[row].bool()
        with torch.no_grad():
            alone = model(ids[row : row + 1, keep], position_ids=positions[row : row + 1, keep])[0]
        torch.testing.assert_close(batch[row, keep], alone[0], rtol=1e-5, atol=1e-5)
    # One cluster per 2 keys is a coarse approximation: it must be visible, or this tests dense.
    smyrf.transformers.enable(model, method="dense")
    with torch.no_grad():
        dense = model(ids, attention_mask=mask, position_ids=positions)[0]
    assert (batch - dense)[mask.bool()].abs().max() > 0.05


def test_unsupported_features_of_models_raise() -> None:
    capped = build("Gemma2")
    smyrf.transformers.enable(capped)
    with pytest.raises(
        NotImplementedError, match=r"model\.layers\.0\.self_attn: got softcap.*disable\(model\)"
    ):
        run(capped, inputs_for("Gemma2", "none"))


@pytest.mark.parametrize("name", ["Bert", "Llama", "Mistral"])
def test_compiled_models_are_whole_graphs_with_the_same_result(name: str) -> None:
    torch._dynamo.reset()
    model, inputs = build(name), inputs_for(name, "left")
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(valid(run(compiled, inputs), inputs), valid(want, inputs))


def test_compiled_models_follow_a_switch_and_ignore_other_models() -> None:
    torch._dynamo.reset()
    build("Llama")  # graphs guard transformers' list of the kinds of models that were made
    model, inputs = build("Bert"), inputs_for("Bert", "left")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def methods() -> list[str]:
        with smyrf.collect() as records:
            run(compiled, inputs)
        return [record.statistics.method for record in records]

    model.set_attn_implementation("smyrf")
    assert methods() == ["dense", "dense"]
    smyrf.transformers.enable(model, method="lsh", n_hashes=1, cluster_size=2)
    assert methods() == ["lsh", "lsh"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        other = build("Llama")
        smyrf.transformers.enable(other)
        assert methods() == ["lsh", "lsh"]
        del other
        gc.collect()
        assert methods() == ["lsh", "lsh"]
    model.set_attn_implementation("sdpa")
    assert methods() == []


def test_unregistered_layers_are_named_by_class_and_index() -> None:
    model = build("Bert")
    model.set_attn_implementation("smyrf")
    with smyrf.collect() as records:
        run(model, inputs_for("Bert", "none"))
    assert [record.layer for record in records] == ["BertSelfAttention.0", "BertSelfAttention.1"]


TEXTS = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the "
    "season of Light, it was the season of Darkness, it was the spring of hope, it was the winter "
    "of despair, we had everything before us, we had nothing before us.",
    "Call me Ishmael.",
    "All happy families are alike; each unhappy family is unhappy in its own way.",
)


@pytest.fixture(scope="module")
def minilm() -> Any:
    return load_model(find_model("minilm"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_real_weights_dense_is_exact_and_lsh_is_as_far_off_as_it_is(minilm: Any, side: str) -> None:
    model, tokenizer = minilm.module, minilm.tokenizer
    rows = tokenizer(list(TEXTS))["input_ids"]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, found in enumerate(rows):
        place = slice(0, len(found)) if side == "right" else slice(width - len(found), width)
        ids[row, place] = torch.tensor(found)
        mask[row, place] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    got = run(model, inputs)
    smyrf.transformers.enable(model, method="lsh", n_hashes=4, cluster_size=8)
    with smyrf.collect(errors=True) as records:
        run(model, inputs)
    smyrf.transformers.disable(model)
    assert torch.equal(run(model, inputs), want)
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], rtol=0, atol=1e-5)
    errors = np.stack([record.relative_error for record in records])
    assert errors.shape == (6, len(rows), 12)
    assert 0.1 < np.median(errors) < 0.9
