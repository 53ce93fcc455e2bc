"""The plain float64 executor that every other one is compared with. Slow on purpose."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smyrf import _core
from smyrf._call import (
    MASKS,
    check_arrays,
    detached,
    is_tensor,
    lse_shape,
    output_shape,
    pack,
)
from smyrf._shapes import is_plain, rows, shaped


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
) -> Any:
    """What `smyrf.attention` would return in exact arithmetic, but for float64 rounding.

    Arguments and errors are those of `smyrf.attention`, whose plan is carried out, so only the
    arithmetic differs.

    Arrays and tensors of its dtypes are read as they are, by the core; the results are NumPy
    arrays. Where query, key and value are float64 tensors, the results are tensors which PyTorch's
    autograd can differentiate by query, key, value and a float attn_mask, any number of times. The
    plan is then that of float32 copies, unless `plan` is given; it is a constant, as are the
    bases, directions and profiles of `tree`, but not the means and variances of its nodes.

    Returns:
        out (B, Hq, Nq, Dv), or in the layout asked for; with return_lse also lse (B, Hq, Nq).
        float64.
    """
    options: dict[str, Any] = {
        "attn_mask": attn_mask,
        "dropout_p": dropout_p,
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
    }
    if _is_float64_tensor(query):
        from smyrf import _torch_reference

        out, lse = _torch_reference.attention(query, key, value, options, plan)
        return pack(out, lse if return_lse else None, None)
    results = _by_core(query, key, value, options, plan)
    return pack(results[0], results[1] if return_lse else None, None)


def _is_float64_tensor(query: Any) -> bool:
    return is_tensor(query) and query.dtype == sys.modules["torch"].float64


def _by_core(
    query: Any, key: Any, value: Any, options: dict[str, Any], plan: _core.Plan | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    query, key, value = (detached(array) for array in (query, key, value))
    options = options | {"attn_mask": detached(options["attn_mask"])}
    check_arrays(
        sys.modules["torch"].Tensor if is_tensor(query) else np.ndarray,
        query=query,
        key=key,
        value=value,
        **{name: options[name] for name in MASKS},
    )
    call = None if is_plain(query, key, value, options) else shaped(query, key, value, options)
    if call is not None:
        query, key, value, options, _ = call
    heads_last = options["layout"] == "BNHD"
    shape = output_shape(query, value)
    if heads_last and len(shape) == 4:
        shape = (shape[0], shape[2], shape[1], shape[3])
    out = np.empty(shape, np.float64)
    lse = np.empty(lse_shape(query, options["layout"]), np.float64)
    if is_tensor(query):
        from smyrf._operator import export_rows

        query, key, value = export_rows(query, key, value)
    else:
        query, key, value = rows(query), rows(key), rows(value)
    _core.reference(query, key, value, out, lse, plan, options)
    if heads_last:
        out = np.ascontiguousarray(out.swapaxes(1, 2))
    return (out, lse) if call is None else call.restored(out, lse)
