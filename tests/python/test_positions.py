"""Exact: calls over parts of a sequence, from arrays and from tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import smyrf

SHAPE = {"query": (2, 4, 60, 16), "key": (2, 2, 90, 16), "value": (2, 2, 90, 12)}
RANDOM = np.random.default_rng(50)
ROWS = tuple(RANDOM.standard_normal(shape, np.float32) for shape in SHAPE.values())
WHOLE: dict[str, Any] = {
    "method": "dense",
    "enable_gqa": True,
    "is_causal": True,
    "window": (70, -1),
    "dropout_p": 0.3,
    "seed": 5,
}
FIRST = (1035, 1000)  # of the whole's queries and keys, themselves a part


def part(
    rows: tuple[Any, ...], queries: slice, keys: slice, heads_last: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The rows of a part and what a call over them is told."""
    query, key, value = rows
    before = (slice(None),) * (1 if heads_last else 2)
    rows = query[(*before, queries)], key[(*before, keys)], value[(*before, keys)]
    return rows, {**WHOLE, "positions": (FIRST[0] + queries.start, FIRST[1] + keys.start)}


@pytest.mark.parametrize("kind", ["numpy", "torch", "torch BNHD"])
def test_parts_merge_to_the_whole(kind: str) -> None:
    heads_last = kind == "torch BNHD"
    options: dict[str, Any] = {"layout": "BNHD" if heads_last else "BHND", "return_lse": True}
    rows: tuple[Any, ...] = tuple(x.swapaxes(1, 2) for x in ROWS) if heads_last else ROWS
    rows = rows if kind == "numpy" else tuple(torch.tensor(x) for x in rows)
    whole = smyrf.attention(*rows, **WHOLE, **options, positions=FIRST)
    for queries in (slice(0, 25), slice(25, 60)):
        results = []
        for keys in (slice(0, 40), slice(40, 41), slice(41, 90)):
            arrays, told = part(rows, queries, keys, heads_last)
            results.append(smyrf.attention(*arrays, **told, **options))
        out, lse = results[0]
        for other in results[1:]:
            out, lse = smyrf.merge(out, lse, *other, layout=options["layout"])
        expected = whole[0][:, queries] if heads_last else whole[0][:, :, queries]
        np.testing.assert_allclose(out, expected, atol=1e-5)
        np.testing.assert_allclose(lse, whole[1][:, :, queries], atol=1e-5)
    without = smyrf.attention(*rows, **WHOLE, **options)
    assert not np.allclose(without[0], whole[0], atol=1e-2)


def test_gradients_of_merged_parts_are_the_wholes() -> None:
    rows = tuple(torch.tensor(x, requires_grad=True) for x in ROWS)
    upstream = torch.tensor(RANDOM.standard_normal((2, 4, 60, 12), np.float32))

    def in_parts() -> torch.Tensor:
        chunks = []
        for queries in (slice(0, 25), slice(25, 60)):
            outs, sums = [], []
            for keys in (slice(0, 40), slice(40, 90)):
                tensors, told = part(rows, queries, keys)
                out, lse = smyrf.attention(*tensors, **told, return_lse=True)
                outs.append(out)
                sums.append(lse)
            weights = torch.softmax(torch.stack(sums), 0).nan_to_num(0.0)
            chunks.append((weights[..., None] * torch.stack(outs)).sum(0))
        return torch.cat(chunks, 2)

    whole = smyrf.attention(*rows, **WHOLE, positions=FIRST)
    found = torch.autograd.grad(in_parts(), rows, upstream)
    for one, other in zip(found, torch.autograd.grad(whole, rows, upstream), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["numpy", "float32", "float64"])
def test_the_reference_takes_positions(dtype: str) -> None:
    rows = ROWS if dtype == "numpy" else tuple(torch.tensor(x) for x in ROWS)
    expected = smyrf.attention(*rows, **WHOLE, positions=FIRST)
    rows = tuple(x.double() for x in rows) if dtype == "float64" else rows
    found = smyrf.reference.attention(*rows, **WHOLE, positions=FIRST)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_plan_has_the_positions_it_was_made_with() -> None:
    made = smyrf.plan(*ROWS, **WHOLE, positions=FIRST)
    assert made.positions == FIRST
    assert smyrf.plan(*ROWS, **WHOLE).positions is None
    expected = smyrf.attention(*ROWS, **WHOLE, positions=FIRST)
    np.testing.assert_array_equal(smyrf.attention(*ROWS, **WHOLE, plan=made), expected)
    with pytest.raises(ValueError, match="positions: differs from the plan's"):
        smyrf.attention(*ROWS, **WHOLE, plan=made, positions=(0, 0))


def test_estimate_takes_positions() -> None:
    query, key, value = (np.tile(x[:, :1], (1, 1, 4, 1)) for x in ROWS)
    options: dict[str, Any] = {"method": "tree", "max_density": 0.5}
    expected = smyrf.attention(query, key, value, **options, positions=(7, 7), return_stats=True)[
        1
    ].expected_error
    found = smyrf.estimate(query, key, value, **options, positions=(7, 7)).expected_error
    np.testing.assert_array_equal(found, expected)


def test_a_compiled_graph_takes_positions() -> None:
    rows = tuple(torch.tensor(x) for x in ROWS)

    def call(*tensors: torch.Tensor) -> Any:
        return smyrf.attention(*tensors, **WHOLE, positions=FIRST)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*rows), call(*rows))
