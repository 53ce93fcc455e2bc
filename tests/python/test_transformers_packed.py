"""Packed rows: each text gives what it gives alone, whatever stands beside it.

Relative: models and layers against the same texts, one call each.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers
from small_models import assert_close, build, run, tokens
from test_transformers_layer import module, rows
from test_transformers_training import assert_near

import smyrf
import smyrf.transformers
from smyrf.integrations.transformers import forward

LENGTHS = (4, 1, 6)
TEXTS = [tokens()[row, :length] for row, length in enumerate(LENGTHS)]


def packed(**settings: Any) -> dict[str, Any]:
    """The texts in one row, as transformers' collator packs them for flash attention."""
    settings = {"return_flash_attn_kwargs": True} | settings
    collator = transformers.DataCollatorWithFlattening(**settings)
    batch: dict[str, Any] = collator([{"input_ids": text.tolist()} for text in TEXTS])
    del batch["labels"]
    return batch


def alone(model: Any, **keywords: Any) -> torch.Tensor:
    out: torch.Tensor = torch.cat([model(text[None], **keywords)[0] for text in TEXTS], 1)
    return out


def gradients(model: Any, out: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (out * rows(*out.shape, seed=8)).sum().backward()
    return {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize(
    ("name", "lengths", "use_cache"),
    [
        *itertools.product(["Llama", "Mistral", "LlamaBothWays"], [True], [False, True]),
        ("Bert", True, False),
        # Transformers looks for positions that begin anew only where there is no cache.
        ("Llama", False, False),
        ("Mistral", False, False),
    ],
)
def test_models_give_each_text_as_alone(name: str, lengths: bool, use_cache: bool) -> None:
    model = build(name)
    more = {} if name == "Bert" else {"use_cache": use_cache}
    want = alone(model, **more)
    expected = gradients(model, want)
    smyrf.transformers.enable(model)
    batch = packed(return_flash_attn_kwargs=lengths)
    with smyrf.collect() as records:
        got = model(**batch, **more)[0]
    assert_close(got.detach(), want.detach())
    assert [record.shape.queries for record in records] == 2 * list(LENGTHS)
    assert_near(gradients(model, got), expected)


def test_rows_of_a_batch_have_texts_of_their_own() -> None:
    model, ids = build("Mistral"), tokens()
    positions = torch.stack([torch.arange(11), torch.arange(11) % 4, torch.arange(11) % 7])
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    with smyrf.collect() as records:
        assert_close(run(model, inputs), want)
    assert [record.shape.queries for record in records] == 2 * [11, 4, 4, 3, 7, 4]


def test_lengths_and_positions_that_disagree_say_so() -> None:
    model, batch = build("Llama"), packed()
    smyrf.transformers.enable(model)
    batch["cu_seq_lens_k"] = torch.tensor([0, 2, 5, 11])
    with pytest.raises(
        ValueError, match=r"self_attn: cu_seq_lens_q and .* differ, and position_ids"
    ):
        model(**batch, use_cache=False)


@pytest.mark.parametrize("options", [{"method": "lsh", "n_hashes": 2, "cluster_size": 2}, {}])
def test_texts_take_the_method_of_their_layer(options: dict[str, Any]) -> None:
    model = build("Bert")
    smyrf.transformers.enable(model, **options)
    with torch.no_grad():
        assert_close(model(**packed())[0], alone(model))


def test_each_text_drops_pairs_of_its_own() -> None:
    q = rows(1, 2, 6, 8)
    both = torch.cat((q, q), 2)
    cuts = torch.tensor([0, 6, 12])
    layer = module(is_causal=False)
    out, _ = forward.attention_forward(layer, both, both, both, None, 0.5, cu_seq_lens_q=cuts)
    assert not torch.equal(out[:, :6], out[:, 6:])


CUTS: dict[str, tuple[list[int], list[int]]] = {
    "of_one_length": ([0, 5, 12, 12, 13], [0, 5, 12, 12, 13]),
    "more_keys": ([0, 3, 7, 8, 13], [0, 5, 9, 12, 18]),
    "fewer_keys": ([0, 3, 7, 8, 13], [0, 1, 1, 2, 4]),
}


@pytest.mark.parametrize("mask", [None, "padding", torch.bool, torch.float32])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cuts", CUTS)
def test_layers_align_each_text_to_its_last_key(
    cuts: str, causal: bool, window: int | None, mask: str | torch.dtype | None
) -> None:
    of_queries, of_keys = CUTS[cuts]
    q, k, v = rows(1, 4, of_queries[-1], 8), *rows(2, 1, 2, of_keys[-1], 8, seed=3)
    bias = rows(1, 4, of_queries[-1], of_keys[-1], seed=4)
    texts = [torch.arange(len(c) - 1).repeat_interleave(torch.tensor(c).diff()) for c in CUTS[cuts]]
    allowed = (texts[0][:, None] == texts[1])[None, None]
    given: torch.Tensor | None = None
    if mask is None:
        of_text = torch.tensor(of_keys)[1:][texts[0]] - torch.tensor(of_queries)[1:][texts[0]]
        before = (torch.arange(of_queries[-1]) + of_text)[:, None] - torch.arange(of_keys[-1])
        if causal:
            allowed = allowed & (before >= 0)
        if window is not None:
            allowed = allowed & (before.abs() < window)
    else:
        given = rows(1, 1, 1 if mask == "padding" else of_queries[-1], of_keys[-1], seed=5) > -0.7
        allowed = allowed & given
        if mask == torch.float32:
            given = torch.zeros(given.shape).masked_fill(~given, -torch.inf)
    keywords = {
        "cu_seq_lens_q": torch.tensor(of_queries, dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor(of_keys, dtype=torch.int32),
        "max_length_q": 7,
    }
    got, _ = forward.attention_forward(
        module(is_causal=causal),
        *(q, k, v, given),
        sliding_window=window,
        position_bias=bias,
        **keywords,
    )
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    full = bias.masked_fill(~allowed, -torch.inf)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, full).transpose(1, 2)
    if mask == torch.bool:  # beside a bias it forbids by a finite number, as in sdpa
        seeing = allowed[0, 0].any(1)
        got, want = got[:, seeing], want[:, seeing]
    # Any other query that may see no key gives 0.
    torch.testing.assert_close(got, want.nan_to_num(), rtol=1e-5, atol=1e-5)


def test_lengths_count_all_rows_of_a_batch() -> None:
    q = rows(2, 4, 5, 8)
    layer = module(is_causal=True)
    cuts = torch.tensor([0, 2, 5, 5, 9, 10])
    got, _ = forward.attention_forward(layer, q, q, q, None, cu_seq_lens_k=cuts)
    flat = q.transpose(0, 1).reshape(1, 4, 10, 8)
    want, _ = forward.attention_forward(layer, flat, flat, flat, None, cu_seq_lens_q=cuts)
    torch.testing.assert_close(got.flatten(0, 1)[None], want)
    shared, _ = forward.attention_forward(layer, q, q[:1], q[:1], None, cu_seq_lens_k=cuts)
    k = q[:1].expand(2, -1, -1, -1)
    want, _ = forward.attention_forward(layer, q, k, k, None, cu_seq_lens_k=cuts)
    assert torch.equal(shared, want)


@pytest.mark.parametrize(
    ("of_queries", "of_keys", "says"),
    [
        ([1, 10], None, r"cu_seq_lens_q: got \[1, 10\].* begin with 0.*end with 10"),
        ([0, 9], None, r"cu_seq_lens_q: got \[0, 9\].*end with 10"),
        ([0, 11], None, r"cu_seq_lens_q: got \[0, 11\].*end with 10"),
        ([0, 7, 6, 10], None, "never fall"),
        ([], None, "begin with 0"),
        ([0.0, 10.0], None, "whole numbers"),
        ([[0, 10]], None, "whole numbers"),
        (None, [0, 9], r"cu_seq_lens_q: got \[0, 9\]"),
        ([0, 5, 10], [0, 9], r"cu_seq_lens_k: got \[0, 9\]"),
        ([0, 5, 10], [0, 10], "2 texts in cu_seq_lens_q and 1 in cu_seq_lens_k"),
        ([0, 4, 10], None, "crosses the end of a row of 5 queries"),
        ([0, 5, 10], [0, 4, 10], "crosses the end of a row of 5 queries and 5 keys"),
    ],
)
def test_lengths_that_do_not_fit_say_so(
    of_queries: list[Any] | None, of_keys: list[Any] | None, says: str
) -> None:
    q = rows(2, 4, 5, 8)
    keywords = {
        name: None if cuts is None else torch.tensor(cuts)
        for name, cuts in (("cu_seq_lens_q", of_queries), ("cu_seq_lens_k", of_keys))
    }
    with pytest.raises(ValueError, match=f"^Module: .*{says}"):
        forward.attention_forward(module(), q, q, q, None, **keywords)


@pytest.mark.filterwarnings("ignore")
def test_compilers_and_traces_leave_texts_alone_or_say_why() -> None:
    torch._dynamo.reset()
    q, cuts, layer = rows(1, 4, 5, 8), torch.tensor([0, 3, 5]), module(is_causal=True)

    def call(q: torch.Tensor) -> torch.Tensor:
        return forward.attention_forward(layer, q, q, q, None, cu_seq_lens_q=cuts)[0]

    torch.testing.assert_close(torch.compile(call, backend="eager")(q), call(q))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph"):
        torch.compile(call, backend="eager", fullgraph=True)(q)
    with pytest.raises(NotImplementedError, match="trace with a padded batch"):
        torch.jit.trace(call, (q,))


def test_chunks_that_count_from_the_rows_begin_are_refused() -> None:
    model = build("Llama4")
    model.set_attn_implementation("smyrf")
    cuts = torch.tensor([0, 5, 6, 11], dtype=torch.int32)
    positions = torch.tensor([[*range(5), 0, *range(5)]])
    given = {"input_ids": tokens()[:1], "position_ids": positions, "cu_seq_lens_q": cuts}
    with pytest.raises(ValueError, match=r"of the whole row.*use_cache=False and position_ids"):
        model(**given)
    want = [run(model, {"input_ids": text}) for text in given["input_ids"].split([5, 1, 5], dim=1)]
    assert_close(run(model, {**given, "use_cache": False}), torch.cat(want, 1))
