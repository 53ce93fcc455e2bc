"""The mask function of `smyrf.transformers`: exact tests against transformers' full masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import masking_utils

from smyrf._masks import Band, PatternMask, plain_band, smyrf_mask

PATTERNS: dict[str, tuple[Callable[..., Any], Band]] = {
    "causal": (masking_utils.causal_mask_function, Band(-1, 0)),
    "bidirectional": (masking_utils.bidirectional_mask_function, Band(-1, -1)),
    "sliding": (masking_utils.sliding_window_causal_mask_function(3), Band(2, 0)),
    "sliding both ways": (
        masking_utils.sliding_window_bidirectional_mask_function(2),
        Band(2, 2),
    ),
}


def meaning(mask: PatternMask) -> torch.Tensor:
    """The full mask (batch, 1, queries, keys) by the band's definition, without transformers."""
    batch, _, queries, keys = mask.shape
    full = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    left, right = mask.band
    for b, i, j in itertools.product(range(batch), range(queries), range(mask.used_keys)):
        at = i + mask.used_keys - queries  # lower right
        seen = (left < 0 or j >= at - left) and (right < 0 or j <= at + right)
        full[b, 0, i, j] = seen and (mask.padding is None or bool(mask.padding[b, j]))
    return full


def arguments(
    pattern: str, queries: int, keys: int, q_offset: Any, kv_offset: int, padded: bool
) -> dict[str, Any]:
    given = None
    if padded:
        generator = torch.Generator().manual_seed(queries * 31 + keys)
        given = torch.rand(2, kv_offset + keys, generator=generator) > 0.3
    return {
        "batch_size": 2,
        "q_length": queries,
        "kv_length": keys,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": PATTERNS[pattern][0],
        "attention_mask": given,
    }


# queries, keys, position of the first query, of the first key
PLACES = {
    "square": (5, 5, 0, 0),
    "after a cache": (4, 7, 3, 0),
    "one query": (1, 7, 6, 0),
    "sliding cache": (3, 5, 9, 7),
    "static cache, filling": (4, 9, 0, 0),
    "static cache, later": (2, 9, 4, 0),
    "static cache, one query": (1, 9, 4, 0),
}


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_the_full_mask_it_stands_for(
    pattern: str, place: str, padded: bool
) -> None:
    queries, keys, q_offset, kv_offset = PLACES[place]
    for offset in (q_offset, torch.tensor(q_offset)):
        given = arguments(pattern, queries, keys, offset, kv_offset, padded)
        full = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
        mask = smyrf_mask(**given, allow_is_causal_skip="both ways" not in pattern)
        if pattern == "sliding both ways" and "static" in place:
            # Looking ahead over unused rows has no lower-right form: the full mask, then.
            assert isinstance(mask, torch.Tensor)
            assert torch.equal(mask, full)
            continue
        assert isinstance(mask, PatternMask)
        assert mask.band == PATTERNS[pattern][1]
        assert torch.equal(meaning(mask), full)
        assert torch.equal(mask.full(), full)
        if "static" in place and pattern != "bidirectional":
            assert mask.used_keys == q_offset + queries < keys


def test_padding_that_is_shorter_than_the_keys_masks_the_rest() -> None:
    given = arguments("bidirectional", 4, 7, 0, 0, False)
    given["attention_mask"] = torch.ones(2, 4, dtype=torch.long)
    mask = smyrf_mask(**given)
    assert isinstance(mask, PatternMask)
    assert mask.padding is not None
    assert mask.padding.tolist() == [[True] * 4 + [False] * 3] * 2


def test_padding_without_a_padded_key_is_none() -> None:
    given = arguments("causal", 4, 4, 0, 0, False)
    mask = smyrf_mask(**{**given, "attention_mask": torch.ones(2, 4, dtype=torch.bool)})
    assert isinstance(mask, PatternMask)
    assert mask.padding is None


def test_other_code_gets_the_full_mask_from_a_pattern() -> None:
    given = arguments("sliding", 5, 5, 0, 0, True)
    mask: Any = smyrf_mask(**given)
    full = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
    assert mask.shape == full.shape
    assert mask.ndim == 4
    assert mask.dtype == full.dtype
    assert torch.equal(mask[:, :, -1:, :3], full[:, :, -1:, :3])
    assert torch.equal(torch.where(mask, 0.0, -1.0), torch.where(full, 0.0, -1.0))
    assert torch.equal(mask.expand(2, 4, 5, 5), full.expand(2, 4, 5, 5))
    assert torch.equal(mask.to(torch.float32), full.to(torch.float32))
    assert torch.equal(mask.logical_not(), ~full)
    assert mask.device == full.device
    # These change nothing, so the pattern survives them.
    assert mask.contiguous() is mask
    assert mask.to("cpu") is mask
    assert mask.to(torch.device("cpu"), non_blocking=True) is mask
    assert smyrf_mask(2, 5, 5, attention_mask=mask) is mask


def test_anything_else_is_not_taken_for_a_plain_pattern() -> None:
    causal = masking_utils.causal_mask_function
    left_padding = torch.zeros(2, dtype=torch.long)
    groups = torch.zeros(2, 5, dtype=torch.long)

    def own(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return k <= q

    others = [
        own,
        masking_utils.chunked_causal_mask_function(3, left_padding),
        masking_utils.or_masks(causal, masking_utils.blockwise_overlay(groups)),
        masking_utils.and_masks(causal, own),
        masking_utils.packed_sequence_compatibility_function(causal, groups, groups),
        masking_utils.add_offsets_to_mask_function(causal, 1, 0),
    ]
    assert [plain_band(other) for other in others] == [None] * len(others)
    given = {**arguments("causal", 5, 5, 0, 0, True), "mask_function": others[1]}
    mask = smyrf_mask(**given, local_size=3)
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(mask, masking_utils.sdpa_mask(**given, local_size=3))


def test_bands_combine_by_and() -> None:
    combined = masking_utils.and_masks(
        masking_utils.sliding_window_overlay(9),
        masking_utils.sliding_window_bidirectional_overlay(4),
        masking_utils.bidirectional_mask_function,
    )
    assert plain_band(combined) == Band(4, 4)
