"""Exact: query, key, value and out as slices of one buffer, as fused projections have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import smyrf

RNG = np.random.default_rng(23)
SIZES = {"BNHD": (2, 37, 3, 8), "BHND": (2, 3, 37, 8)}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("layout", SIZES)
def test_out_may_lie_beside_its_inputs(layout: str, axis: int, kind: str) -> None:
    sizes = SIZES[layout]
    packed = RNG.standard_normal((*sizes[:axis], 4, *sizes[axis:]), np.float32)
    inputs = [np.ascontiguousarray(packed.take(i, axis)) for i in range(3)]
    wanted = smyrf.attention(*inputs, layout=layout)
    buffer: Any = packed if kind == "numpy" else torch.from_numpy(packed)
    parts = [buffer[(slice(None),) * axis + (i,)] for i in range(4)]
    given = parts[3]
    assert smyrf.attention(*parts[:3], layout=layout, out=given) is given
    assert np.array_equal(packed.take(3, axis), wanted)
    for i in range(3):
        assert np.array_equal(packed.take(i, axis), inputs[i])
    for part, name in zip(parts[:3], ("query", "key", "value"), strict=True):
        with pytest.raises(ValueError, match=f"out: overlaps the memory of {name}"):
            smyrf.attention(*parts[:3], layout=layout, out=part)
