"""Plans carried out: the bits of the call that made them; other calls are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Array, calls, examples, plain, random_arrays
from hypothesis import given
from hypothesis import strategies as st

import smyrf


@examples(60)
@given(calls(), st.booleans())
def test_a_plan_carried_out_has_the_same_bits(
    call: tuple[tuple[Array, ...], dict[str, Any]], with_lsh: bool
) -> None:
    arrays, options = call
    if with_lsh:
        masks = ("attn_mask", "is_causal", "window")
        options = {name: x for name, x in options.items() if name not in masks}
        options |= {"method": "lsh", "n_hashes": 2, "cluster_size": 9, "seed": 3, "scale": 0.5}
    direct = smyrf.attention(*arrays, **options, return_lse=True)
    plan = smyrf.plan(*arrays[:2], **options)
    rest = {n: x for n, x in options.items() if n in ("attn_mask", "scale", "enable_gqa")}
    for keywords in (rest, options):  # what the plan holds may be left out, or repeated
        out, lse, statistics = smyrf.attention(
            *arrays, **keywords, plan=plan, return_lse=True, return_stats=True
        )
        assert out.tobytes() == direct[0].tobytes()
        assert lse.tobytes() == direct[1].tobytes()
        assert statistics.planning_seconds == 0


def test_a_plan_for_another_call_is_refused() -> None:
    query, key, value = random_arrays(plain(2, 2, 40, 60, 8, 8), 0)
    padding = np.arange(60) < [[50], [60]]
    plan = smyrf.plan(query, key, method="lsh", cluster_size=8, key_padding_mask=padding)
    for differs, keywords in {
        "n_hashes": {"n_hashes": 3},
        "cluster_size": {"cluster_size": 9},
        "seed": {"seed": 1},
        "method": {"method": "dense"},
        "is_causal": {"is_causal": True},
        "window": {"window": (3, 3)},
        "key_padding_mask": {"key_padding_mask": ~padding},
        "query_padding_mask": {"query_padding_mask": np.arange(40) < [[30], [40]]},
        "scale": {"scale": -1.0},
    }.items():
        with pytest.raises(ValueError, match=f"^{differs}: .*plan"):
            smyrf.attention(query, key, value, plan=plan, **keywords)
    with pytest.raises(NotImplementedError, match=r"^attn_mask: .*plan"):
        smyrf.attention(query, key, value, np.ones((40, 60), bool), plan=plan)
    for name, arrays in {
        "batch": [x[:1] for x in (query, key, value)],
        "query heads": [x[:, :1] for x in (query, key, value)],
        "Nq": [query[:, :, :30], key, value],
        "Nk": [query, key[:, :, :50], value[:, :, :50]],
        "D": [query[..., :4], key[..., :4], value],
    }.items():
        with pytest.raises(ValueError, match=f"^plan: was made for {name} = .*make a plan"):
            smyrf.attention(*arrays, plan=plan)


def test_a_plan_made_with_a_mask_asks_for_it() -> None:
    """Plans hold no mask; dropping it would be silent."""
    line = np.ones((1, 1, 6, 4), np.float32)
    mask = np.eye(6, dtype=bool)
    masked = smyrf.plan(line, line, attn_mask=mask)
    assert smyrf.attention(line, line, line, mask, plan=masked).shape == line.shape
    with pytest.raises(ValueError, match="attn_mask: the plan was made with one"):
        smyrf.attention(line, line, line, plan=masked)
    with pytest.raises(ValueError, match="attn_mask: the plan was made without one"):
        smyrf.attention(line, line, line, mask, plan=smyrf.plan(line, line))
