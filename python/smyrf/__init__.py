"""smyrf: attention for long sequences that drops into pretrained models.

`attention` is `torch.nn.functional.scaled_dot_product_attention` with a choice of method and a few
more masks, for NumPy arrays and PyTorch tensors on the CPU.
"""

from __future__ import annotations

from typing import Any

from smyrf import _arrays, _core, reference
from smyrf._attention import attention
from smyrf._call import is_tensor
from smyrf._core import Plan, Statistics
from smyrf._types import Array, Layout, Method
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
    seed: int = 0,
    window: tuple[int, int] | None = None,
    key_padding_mask: Array | None = None,
    query_padding_mask: Array | None = None,
    layout: Layout = "BHND",
    num_threads: int | None = None,
) -> Plan:
    """The structure that `attention` would carry out for these arguments.

    Arguments and errors are those of `attention`. A plan of `dense` or `lsh` depends on query and
    key, not on value; `tree` needs value too. Plans can be reused for other tensors of the same
    shapes, counted and drawn. They hold no attn_mask and no dropout_p (which only has "auto" take
    dense): a call must pass the attn_mask that its plan was made with, and its own dropout_p.
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
        "seed": seed,
        "window": window,
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
    seed: int = 0,
    window: tuple[int, int] | None = None,
    key_padding_mask: Array | None = None,
    query_padding_mask: Array | None = None,
    layout: Layout = "BHND",
    num_threads: int | None = None,
) -> Statistics:
    """What `attention` would do for these arguments, without doing it. Costs `tree`'s planning.

    Arguments and errors are those of `attention`; NotImplementedError for method "lsh", which has
    no estimate of its error.

    Returns:
        Statistics with, for every (batch, query head), what calibration on sampled rows expects:
        `density`, `expected_error` (relative, of out), `expected_lse_error` (RMS, nats),
        `expected_work` (time over dense attention's) and `dense_heads` (those that go dense).
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
        "seed": seed,
        "window": window,
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
    """What a call of the core that plans says of the arrays, whichever kind they are."""
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
    """Attention over two disjoint sets of keys, from that of the same queries over each of them.

    Rows are weighted by e^lse, so parts of a long key sequence can be computed apart. Not for
    `lsh`, whose lse is a weight of its own. Outside graphs and gradients.

    Args:
        out, other_out: (B, Hq, Nq, Dv), or of another rank, as `attention` returned them, of one
            dtype.
        lse, other_lse: float32 (B, Hq, Nq), or as out without its last dimension, from
            `return_lse=True`. A row of -inf adds nothing.
        layout: "BHND", or "BNHD" for (B, N, H, D); of out and other_out.
        num_threads: default what PyTorch would use; without it OMP_NUM_THREADS, else all
            processors.

    Returns:
        (out, lse) over both sets, new arrays.

    Raises:
        TypeError: wrong kind of array, dtype, rank or device.
        ValueError: shapes that disagree.
        NotImplementedError: tensors that require gradients, or inside a compiled graph.
    """
    if is_tensor(out):
        from smyrf import _tensors

        return _tensors.merge(out, lse, other_out, other_lse, layout, num_threads)
    return _arrays.merge(out, lse, other_out, other_lse, layout, num_threads)
