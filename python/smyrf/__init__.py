"""smyrf: attention for long sequences that drops into pretrained models.

`attention` takes the arguments of `torch.nn.functional.scaled_dot_product_attention`, a method and
a few more masks, for NumPy arrays and PyTorch tensors on the CPU.
"""

from __future__ import annotations

from typing import Any

from smyrf import _arrays, _core, reference
from smyrf._attention import attention
from smyrf._call import is_tensor
from smyrf._core import Plan, Statistics
from smyrf._types import Array, Layout, Method, Precision
from smyrf.collector import Record, collect

__version__: str = _core.version

__all__ = [
    "Layout",
    "Method",
    "Plan",
    "Record",
    "Statistics",
    "attention",
    "collect",
    "estimate",
    "merge",
    "plan",
    "reference",
]


def plan(
    query: Array,
    key: Array,
    value: Array | None = None,
    attn_mask: Array | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
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
    num_threads: int | None = None,
) -> Plan:
    """The structure that `attention` would carry out for these arguments.

    Arguments, defaults and errors are those of `attention`. A plan can be carried out for any
    arrays of the same shapes, looked into and pickled. It holds neither attn_mask nor dropout_p: a
    call with the plan must pass the attn_mask that the plan was made with, and its own dropout_p.

    Args:
        value: needed by `tree` alone; plans of `dense` and `lsh` depend on query and key only.
            Default none.
        dropout_p: above 0, "auto" takes "dense".

    Returns:
        Plan, for `attention(..., plan=plan)`.
    """
    options = {
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
        "num_threads": num_threads,
    }
    made: Plan = _planned(_core.plan, query, key, value, options)
    return made


def estimate(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    method: Method = "tree",
    tolerance: float | None = None,
    max_density: float | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    window: tuple[int, int] | None = None,
    positions: tuple[int, int] | None = None,
    key_padding_mask: Array | None = None,
    query_padding_mask: Array | None = None,
    layout: Layout = "BHND",
    num_threads: int | None = None,
) -> Statistics:
    """What `attention` would do for these arguments, at the cost of `tree`'s planning alone.

    Arguments, defaults and errors are those of `attention`, but for the method: its default is
    "tree", and "lsh", which has no estimate of its error, raises NotImplementedError.

    Returns:
        Statistics of what calibration on sampled rows expects of every (batch, query head):
        `density`, `expected_error` (relative, of out), `expected_lse_error` (RMS, in nats),
        `expected_work` (time, in times of dense attention) and `dense_heads` (those done as dense).
    """
    options = {
        "attn_mask": attn_mask,
        "key_padding_mask": key_padding_mask,
        "query_padding_mask": query_padding_mask,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "method": method,
        "tolerance": tolerance,
        "max_density": max_density,
        "precision": precision,
        "seed": seed,
        "window": window,
        "positions": positions,
        "layout": layout,
        "num_threads": num_threads,
    }
    if value is None:
        raise TypeError(
            "value: got NoneType, expected a NumPy array or a PyTorch tensor like query"
        )
    expected: Statistics = _planned(_core.estimate, query, key, value, options)
    return expected


def _planned(call: Any, query: Any, key: Any, value: Any, options: dict[str, Any]) -> Any:
    """The result of `call`, the core's `plan` or `estimate`, for arrays of either kind."""
    if is_tensor(query):
        from smyrf import _tensors

        return _tensors.planned(call, query, key, value, options)
    return _arrays.planned(call, query, key, value, options)


def merge(
    out: Array,
    lse: Array,
    other_out: Array,
    other_lse: Array,
    *,
    layout: Layout = "BHND",
    num_threads: int | None = None,
) -> tuple[Array, Array]:
    """Attention over two disjoint sets of keys, from the results for each of them.

    The queries of both results are the same. A long sequence of keys can so be computed in parts:
    their rows are added with weights proportional to e^lse. Not for `lsh`, whose lse is no
    log-sum-exp.

    Args:
        out, other_out: (B, Hq, Nq, Dv) or of another rank, as `attention` returned them; both of
            one shape and dtype.
        lse, other_lse: float32 (B, Hq, Nq), or the shape of out without its last dimension, from
            `return_lse=True`. A row of -inf adds nothing.
        layout: of out and other_out: "BHND" by default, or "BNHD" for (B, N, H, D).
        num_threads: default SMYRF_NUM_THREADS, else PyTorch's number; without PyTorch
            OMP_NUM_THREADS, else all processors.

    Returns:
        (out, lse) over both sets of keys: new arrays.

    Raises:
        TypeError: an array of the wrong kind, dtype, rank or device.
        ValueError: shapes that disagree.
        NotImplementedError: tensors that require gradients, or inside a compiled graph.
    """
    if is_tensor(out):
        from smyrf import _tensors

        return _tensors.merge(out, lse, other_out, other_lse, layout, num_threads)
    return _arrays.merge(out, lse, other_out, other_lse, layout, num_threads)
