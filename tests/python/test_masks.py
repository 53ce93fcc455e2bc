"""The mask function of `smyrf.transformers`: exact tests against transformers' full masks."""

from __future__ import annotations

import copy
import itertools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

from smyrf.integrations.transformers.forward import attention_forward
from smyrf.integrations.transformers.masks import (
    Band,
    BoolMask,
    PatternMask,
    as_layers_see,
    plain_band,
    smyrf_mask,
)

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
            assert not isinstance(mask, PatternMask)
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


def masks() -> tuple[Any, torch.Tensor]:
    """A pattern and the full mask that it stands for, (2, 1, 5, 5)."""
    given = arguments("causal", 5, 5, 0, 0, True)
    return smyrf_mask(**given), masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)


X = torch.tensor([1, 0])
ROWS = torch.linspace(-1, 1, 50).view(2, 1, 5, 5)
USES: dict[str, Callable[[Any], Any]] = {
    "cat": lambda m: torch.cat([m, m], -1),
    "stack": lambda m: torch.stack((m, m)),
    "nested lists": lambda m: torch.block_diag(*[m[0, 0], m[1, 0]]),
    "keywords": lambda m: torch.where(condition=m, input=ROWS, other=torch.zeros(())),
    "index by a tuple": lambda m: m[X,],
    "index": lambda m: m[..., -1:, 1:3],
    "index of another": lambda m: ROWS[m],
    "index in a tuple": lambda m: ROWS[0][m[0],],
    "== 0": lambda m: m == 0,
    "!= 0": lambda m: m != 0,
    "0 ==": lambda m: operator.eq(0, m),
    "~": lambda m: ~m,
    "* 2": lambda m: m * 2,
    "2 *": lambda m: 2 * m,
    "+ 1": lambda m: m + 1,
    "< 1": lambda m: m < 1,
    "&": lambda m: m & (ROWS > 0),
    "& of another": lambda m: (ROWS > 0) & m,
    "|": lambda m: m | False,
    "^": lambda m: True ^ m,
    "-": lambda m: -(m * 1),
    "/": lambda m: m / 2,
    "@": lambda m: m.float() @ ROWS,
    "&=": lambda m: operator.iand(m, ROWS > 0),
    "len": len,
    "iteration": lambda m: [row.tolist() for row in m],
    "bool": lambda m: [bool(row) for row in m.flatten()],
    "in": lambda m: (True in m, 2 in m),
    "tolist": lambda m: m.tolist(),
    "NumPy": lambda m: torch.from_numpy(m.numpy()),
    "shape": lambda m: (
        m.shape,
        m[0].shape.numel(),
        m.size(1),
        m.dim(),
        m.ndim,
        m.numel(),
        m.device == X.device,
    ),
    "is": lambda m: (
        m.is_floating_point(),
        m.requires_grad,
        m.is_meta,
        m.is_cpu,
        m.layout == X.layout,
    ),
    "a tensor": lambda m: (isinstance(m, torch.Tensor), torch.is_tensor(m)),
    "to": lambda m: m.to("cpu", torch.float16),
    "to like": lambda m: m.to(ROWS),
    "methods": lambda m: m.expand(2, 3, 5, 5).any(-1).logical_not().sum(1),
    "split": lambda m: torch.cat(m.split([2, 3], dim=-1), -1),
    "transposed": lambda m: m.mT,
    "data": lambda m: m.data,
    "largest": lambda m: m.max(-1).values,
    "masked_fill": lambda m: ROWS.masked_fill(m, -9.0),
    "masked_fill_": lambda m: ROWS.clone().masked_fill_(~m, -9.0),
    "copied in": lambda m: torch.zeros(2, 1, 5, 5).copy_(m),
    "sdpa": lambda m: torch.nn.functional.scaled_dot_product_attention(ROWS, ROWS, ROWS, m),
    "pad": lambda m: torch.nn.functional.pad(m, (1, 2), value=True),
    "aten": lambda m: torch.ops.aten.logical_not(m),
    "vmap": lambda m: torch.vmap(lambda i: m[0, 0, i])(X),
    "clone": lambda m: m.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "tree_map": lambda m: torch.utils._pytree.tree_map(torch.logical_not, {"masks": [m]}),
    "hash": lambda m: (m in {m}, {m: 1}[m]),
}


@pytest.mark.parametrize("use", USES)
def test_any_use_of_a_pattern_gives_what_the_full_mask_gives(use: str) -> None:
    mask, full = masks()
    got, want = USES[use](mask), USES[use](full)
    # Booleans keep their guard, which assert_close would take for another type.
    plain = torch.utils._pytree.tree_map_only(BoolMask, BoolMask.full, got)
    torch.testing.assert_close(plain, want, rtol=0, atol=0, equal_nan=True)
    # With the pattern itself, too: what was made first is kept.
    assert torch.equal(mask, full)
    assert use in ("&=", "NumPy") or as_layers_see(mask) is mask  # NumPy may write to its memory


def test_a_mask_that_is_no_pattern_is_copied_too() -> None:
    mask, full = masks()
    pickled = pickle.dumps(mask[:1], 2)  # this protocol has names as lines
    of_0_2 = pickled.replace(b"csmyrf.integrations.transformers.", b"csmyrf._")
    assert of_0_2 != pickled
    for copied in (copy.deepcopy(mask[:1]), pickle.loads(pickled), pickle.loads(of_0_2)):
        assert isinstance(copied, BoolMask)
        assert torch.equal(copied.full(), full[:1])


def write(mask: Any) -> None:
    mask[..., 0] = True


@pytest.mark.parametrize(
    "change",
    [
        write,
        lambda m: operator.ior(m, ROWS > 0),
        lambda m: m.logical_not_(),
        lambda m: write(m.view(2, 25)),
        lambda m: write(m[0].mT.data),
        lambda m: torch.logical_not(m, out=m),
        lambda m: write(m.numpy()),
    ],
)
def test_a_mask_that_was_written_to_is_no_pattern_any_more(change: Callable[[Any], Any]) -> None:
    mask, full = masks()
    assert as_layers_see(mask) is mask
    change(mask)
    change(full)
    seen = as_layers_see(mask)
    assert type(seen) is torch.Tensor
    assert torch.equal(seen, full)


SCORES = torch.zeros(2, 1, 5, 5)
ADDITIONS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "scores + m": lambda m, scores: scores + m,
    "m + scores": lambda m, scores: m + scores,
    "+=": lambda m, scores: operator.iadd(scores, m),
    "-": lambda m, scores: scores - m,
    "add": lambda m, scores: torch.add(input=scores, other=m),
    "add_": lambda m, scores: scores.add_(m, alpha=2),
    "sum": lambda m, scores: sum([scores, m]),
    "baddbmm": lambda m, scores: torch.baddbmm(m[:, 0], scores[:, 0], scores[:, 0]),
    "addmm": lambda m, scores: torch.addmm(m[0, 0], scores[0, 0], scores[0, 0]),
    "aten": lambda m, scores: torch.ops.aten.add.Tensor(scores, m),
}
DERIVED: dict[str, Callable[[Any], Any]] = {
    "": lambda m: m,
    "slice": lambda m: m[..., :5],
    "cast": lambda m: m.to(torch.bool),
    "cat": lambda m: torch.cat([m[:1], m[1:]]),
    "expand": lambda m: m.expand(2, 1, 5, 5),
    "not": lambda m: ~m,
    "&": lambda m: m & (SCORES == 0),
    "== 0": lambda m: m == 0,
    "contiguous": lambda m: m.contiguous(),
    "float": lambda m: m.float(),
    "to like": lambda m: m.to(SCORES)[:, :, :5].expand(2, 1, 5, 5),
    "not, half": lambda m: (~m).half(),
}


@pytest.mark.parametrize("plain", [True, False], ids=["pattern", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_can_not_be_added_to_scores(plain: bool, dtype: torch.dtype) -> None:
    given = arguments("causal", 5, 5, 0, 0, True)
    if not plain:
        given["mask_function"] = masking_utils.chunked_causal_mask_function(
            3, torch.zeros(2, dtype=torch.long)
        )
    scores = SCORES.to(dtype)
    for add in ADDITIONS.values():
        for derive in DERIVED.values():
            mask = derive(smyrf_mask(**given))
            with pytest.raises(ValueError, match=r"adds smyrf's boolean mask.*disable\(model\)"):
                add(mask, scores)
    assert not scores.any()


def test_additive_masks_made_from_casts_can_be_added() -> None:
    mask, full = masks()
    lowest = torch.finfo(torch.float32).min
    made: list[Callable[[Any], Any]] = [
        lambda m: (1.0 - m.float()) * lowest,
        lambda m: (torch.tensor(1.0) - m.to(torch.float32)) * lowest,
        lambda m: (m.float() - 1) * 1e9,
        lambda m: (~m).float().masked_fill_(~m, lowest),
        lambda m: m.float().log(),
    ]
    for make in made:
        assert torch.equal(SCORES + make(mask), SCORES + make(full))
    filled = mask.float()
    filled[filled == 0] = lowest
    filled[filled == 1] = 0
    for added in (filled, filled[..., :5]):
        assert torch.equal(SCORES + added, torch.where(full, 0.0, lowest))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_fake_tensors_give_a_fake_mask(pattern: str) -> None:
    with FakeTensorMode() as mode:
        given = arguments(pattern, 4, 9, torch.tensor(2), 0, False)
        padding = mode.from_tensor(torch.ones(2, 9, dtype=torch.bool))
        mask = smyrf_mask(**{**given, "attention_mask": padding})
        assert mask.shape == (2, 1, 4, 9)
        assert torch.where(mask, 1.0, 0.0).shape == mask.shape


def test_a_mask_is_never_left_out() -> None:
    for pattern in PATTERNS:
        mask = smyrf_mask(
            **arguments(pattern, 4, 4, 0, 0, False),
            allow_is_causal_skip=True,
            allow_is_bidirectional_skip=True,
        )
        assert isinstance(mask, PatternMask)


@pytest.mark.parametrize(("queries", "keys"), [(1, 5), (5, 1), (1, 1)])
def test_a_mask_for_one_query_or_key_holds_for_all(queries: int, keys: int) -> None:
    query = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    given = arguments("bidirectional", queries, keys, 0, 0, True)
    full = masking_utils.sdpa_mask(**given)
    want = torch.nn.functional.scaled_dot_product_attention(query, query, query, full)
    layer = torch.nn.Module()
    got, _ = attention_forward(layer, query, query, query, smyrf_mask(**given))
    torch.testing.assert_close(got.transpose(1, 2), want, rtol=1e-5, atol=1e-6)


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
    assert not isinstance(mask, PatternMask)
    assert torch.equal(mask, masking_utils.sdpa_mask(**given, local_size=3))


def test_bands_combine_by_and() -> None:
    combined = masking_utils.and_masks(
        masking_utils.sliding_window_overlay(9),
        masking_utils.sliding_window_bidirectional_overlay(4),
        masking_utils.bidirectional_mask_function,
    )
    assert plain_band(combined) == Band(4, 4)
