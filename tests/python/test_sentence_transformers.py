"""sentence-transformers with smyrf's attention: relative to its own embeddings by `sdpa`."""

from __future__ import annotations

import pytest
import torch

import smyrf
import smyrf.transformers
from smyrf.compare.models import find_model

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "Call me Ishmael.",
    "It was the best of times, it was the worst of times. " * 8,
    "All happy families are alike; each unhappy family is unhappy in its own way.",
]


def test_embeddings_are_those_of_sdpa_and_methods_switch_in_place() -> None:
    folder = str(find_model("minilm").folder)

    def load(name: str) -> sentence_transformers.SentenceTransformer:
        keywords = {"attn_implementation": name}
        return sentence_transformers.SentenceTransformer(
            folder, device="cpu", model_kwargs=keywords
        )

    want = load("sdpa").encode(TEXTS, convert_to_tensor=True)
    model = load("smyrf")
    with smyrf.collect() as records:
        got = model.encode(TEXTS, convert_to_tensor=True)
    assert len(records) == 6
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    names = smyrf.transformers.enable(model, method="tree", tolerance=0.1)
    with smyrf.collect() as records:
        approximate = model.encode(TEXTS, convert_to_tensor=True)
    assert [record.layer for record in records] == names
    assert {record.statistics.method for record in records} == {"tree"}
    assert (approximate * want).sum(1).min() > 0.98
    smyrf.transformers.disable(model)
    with smyrf.collect() as records:
        model.encode(TEXTS)
    assert len(records) == 6, "loaded with smyrf's name, it keeps smyrf's auto"
