"""Attention in float64 by plain loops: what every other executor is compared with.

It is slow, so that it is easy to check.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, overload

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
from smyrf._types import Array, Layout, Method, Precision

if TYPE_CHECKING:
    import torch


@overload
def attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    attn_mask: NDArray[Any] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    method: Method = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: NDArray[Any] | None = None,
    query_padding_mask: NDArray[Any] | None = None,
    layout: Layout = "BHND",
    plan: _core.Plan | None = None,
    return_lse: Literal[False] = False,
) -> NDArray[np.float64]: ...
@overload
def attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    attn_mask: NDArray[Any] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    method: Method = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: NDArray[Any] | None = None,
    query_padding_mask: NDArray[Any] | None = None,
    layout: Layout = "BHND",
    plan: _core.Plan | None = None,
    return_lse: Literal[True],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    method: Method = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: torch.Tensor | None = None,
    query_padding_mask: torch.Tensor | None = None,
    layout: Layout = "BHND",
    plan: _core.Plan | None = None,
    return_lse: Literal[False] = False,
) -> Any: ...
@overload
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    method: Method = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: torch.Tensor | None = None,
    query_padding_mask: torch.Tensor | None = None,
    layout: Layout = "BHND",
    plan: _core.Plan | None = None,
    return_lse: Literal[True],
) -> tuple[Any, Any]: ...
@overload
def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    method: Method = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: Array | None = None,
    query_padding_mask: Array | None = None,
    layout: Layout = "BHND",
    plan: _core.Plan | None = None,
    return_lse: bool,
) -> Any: ...
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
    method: Method = "auto",
    n_hashes: int | None = None,
    cluster_size: int | None = None,
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: Any = None,
    query_padding_mask: Any = None,
    layout: Layout = "BHND",
    plan: _core.Plan | None = None,
    return_lse: bool = False,
) -> Any:
    """What `smyrf.attention` would return in exact arithmetic, but for float64 rounding.

    Arguments, shapes, defaults and errors are those of `smyrf.attention`. The same plan is carried
    out, so that only the arithmetic differs.

    Args:
        query, key, value: arrays or tensors of a dtype that `smyrf.attention` takes, or float64
            tensors. Of float64 tensors the plan is that of float32 copies, unless `plan` is given.

    Returns:
        out, float64 (B, Hq, Nq, Dv) or in the layout asked for. With return_lse: (out, lse), lse
        float64 (B, Hq, Nq). Of float64 tensors both are tensors, otherwise NumPy arrays.

        Tensors can be differentiated by query, key, value and a float attn_mask, any number of
        times. The plan is a constant, and so are the bases, directions and profiles of `tree`. The
        means and variances of its nodes are not.
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
        "precision": precision,
        "seed": seed,
        "window": window,
        "positions": positions,
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
