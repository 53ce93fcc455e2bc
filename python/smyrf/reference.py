"""The plain float64 executor that every other one is compared with. Slow on purpose."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smyrf import _core
from smyrf._call import (
    check_arrays,
    check_dropout,
    detached,
    is_tensor,
    lse_shape,
    output_shape,
    pack,
)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    method: str = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    seed: int = 0,
    window: tuple[int, int] | None = None,
    key_padding_mask: Any = None,
    query_padding_mask: Any = None,
    layout: str = "BHND",
    plan: _core.Plan | None = None,
    return_lse: bool = False,
) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `smyrf.attention` would return in exact arithmetic, but for float64 rounding.

    Arguments and errors are those of `smyrf.attention`. The inputs are read in their own dtype;
    with `method="lsh"` the same plan is carried out, so only the arithmetic differs.

    Returns:
        out (B, Hq, Nq, Dv), or in the layout asked for; with return_lse also lse (B, Hq, Nq).
        float64 NumPy arrays.
    """
    check_dropout(dropout_p)
    query, key, value, attn_mask = (detached(array) for array in (query, key, value, attn_mask))
    check_arrays(
        sys.modules["torch"].Tensor if is_tensor(query) else np.ndarray,
        query=query,
        key=key,
        value=value,
        attn_mask=attn_mask,
        key_padding_mask=key_padding_mask,
        query_padding_mask=query_padding_mask,
    )
    shape = output_shape(query, value)
    if layout == "BNHD" and len(shape) == 4:
        shape = (shape[0], shape[2], shape[1], shape[3])
    out = np.empty(shape, np.float64)
    lse = np.empty(lse_shape(query, layout), np.float64)
    _core.reference(
        query,
        key,
        value,
        out,
        lse,
        plan,
        {
            "attn_mask": attn_mask,
            "key_padding_mask": key_padding_mask,
            "query_padding_mask": query_padding_mask,
            "is_causal": is_causal,
            "scale": scale,
            "enable_gqa": enable_gqa,
            "method": method,
            "n_hashes": n_hashes,
            "cluster_size": cluster_size,
            "tolerance": tolerance,
            "max_density": max_density,
            "seed": seed,
            "window": window,
            "layout": layout,
            "num_threads": 1,
        },
    )
    if layout == "BNHD":
        out = np.ascontiguousarray(out.swapaxes(1, 2))
    return pack(out, lse if return_lse else None, None)  # type: ignore[no-any-return]
