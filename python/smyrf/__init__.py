"""smyrf: attention for long sequences that drops into pretrained models.

`attention` is `torch.nn.functional.scaled_dot_product_attention` with a choice of method and a few
more masks, for NumPy arrays and PyTorch tensors on the CPU.
"""

from __future__ import annotations

from typing import Any

from smyrf import _arrays, _core, reference
from smyrf._call import is_tensor, plain
from smyrf._core import Plan, Statistics
from smyrf.collector import Record, collect

__version__: str = _core.version

__all__ = [
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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Any = None,
    return_lse: bool = False,
    return_stats: bool = False,
) -> Any:
    """softmax(scale query key^T + masks) value, by the method asked for.

    All masks combine by AND. A query that may see no key, or is padded, gives 0 and lse -inf.
    Nothing is converted, and nothing copied but query, key or value whose last dimension is not
    contiguous; that of out must be.

    Other ranks and dimensions of 1 are as in `scaled_dot_product_attention`: query, key and value
    may be (N, D), (batch, N, D), (batch, heads, N, D) or have several dimensions of batch before
    the heads, and dimensions before the last two broadcast, without copies up to one dimension of
    batch. Of three dimensions the first counts heads, with batch 1, if enable_gqa is set or the
    layout is "BNHD" (then they are (N, heads, D)). A mask has at most as many dimensions as out.
    out has the broadcast shape, lse that without its last dimension and padding masks the batch's
    dimensions and N; plan and statistics count one batch, the product of its dimensions, and one
    head where there is no dimension of heads.

    PyTorch's autograd gives gradients by query, key and value, of out and lse, once and not twice;
    none by masks. Those of `lsh` and `tree` are of what was computed, with the plan as a constant,
    and a tolerance bounds the error of out, not theirs: where a gradient is needed, "auto" takes
    "dense" unless a tolerance is given.

    Args:
        query: (B, Hq, Nq, D) or as above, float32, float16 or (PyTorch) bfloat16, on the CPU. D
            up to 2048.
        key: (B, Hkv, Nk, D), the dtype of query.
        value: (B, Hkv, Nk, Dv), the dtype of query. Dv up to 2048.
        attn_mask: broadcastable to (B, Hq, Nq, Nk): bool (True takes part) or float, added to the
            logits. `dense` only.
        dropout_p: each evaluated pair's weight is dropped with this probability, after softmax, and
            divided by 1 - dropout_p otherwise; from 0 to 1. `seed`, batch, head and the
            indices of query and key decide which; lse does not change. "auto" then takes "dense";
            not for `tree`.
        is_causal: query i sees keys up to i + Nk - Nq: aligned to the lower right corner, unlike
            `scaled_dot_product_attention` when Nq != Nk. `dense` only.
        scale: factor on the logits, default 1/sqrt(D). Finite; above 0 for `lsh`.
        enable_gqa: lets keys have fewer heads: query head h uses key head h // (Hq / Hkv).
        method: "dense" (every allowed pair), "lsh" (balanced clusters of an asymmetric hash, SMYRF,
            Daras et al., NeurIPS 2020), "tree" (balanced trees of queries and keys: far nodes of
            keys are summarised, near ones opened until sampled rows meet the tolerance) or "auto":
            "tree" from 2048 queries and keys on (1536 where query heads share keys) where there is
            no mask but padding and the tolerance is not 0, else "dense". The environment variable
            SMYRF_METHOD ("dense" or "tree") stands in for "auto" where a call gives it.
        n_hashes: rounds of hashing, 1 to 4096, default 8. `lsh` only.
        cluster_size: keys a cluster, at least 1, default 32. `lsh` only.
        tolerance: relative error of out aimed for in every (batch, query head), and RMS error of
            lse in nats; from 0 (every pair) to below 1, default 0.05. Relative to out, or to .01
            of the values' deviation where that is more. `tree` and "auto" only. SMYRF_TOLERANCE
            is another default.
        max_density: most pairs over all pairs that may be evaluated, above 0 to 1, default no
            limit; statistics say what error to expect. 24 or 40 keys and a summary for about every
            512 are evaluated in any case. `tree` only.
        seed: chooses hash directions (`lsh`), calibration rows (`tree`) and what is dropped, 0 to
            2^63 - 1. With dropout, take another in each call.
        window: (left, right): query i sees keys from i + Nk - Nq - left to i + Nk - Nq + right;
            -1 for no bound. `dense` only.
        key_padding_mask, query_padding_mask: bool (B, Nk) and (B, Nq), True is valid. Padded rows
            are never read.
        layout: "BHND", or "BNHD" for (B, N, H, D); of query, key, value and out.
        num_threads: default SMYRF_NUM_THREADS, else what PyTorch would use; without it
            OMP_NUM_THREADS, else all processors. The result has the same bits for any.
        plan: made by `smyrf.plan` for such a call; then its method, dials, padding, causality and
            window apply, and arguments that differ from it raise.
        out: written to and returned; the shape and dtype of the result. Default a new array.
        return_lse: also return the natural log-sum-exp of every query's logits, float32
            (B, Hq, Nq). For `lsh` it is the paper's weight of all rounds, not mergeable.
        return_stats: also return `Statistics`.

    Returns:
        out, then lse if asked, then statistics if asked; a tuple if more than one. A tensor's out
        has the strides of `scaled_dot_product_attention`'s, so that the same views of it work.

    Raises:
        TypeError: wrong kind of array, dtype, rank or device.
        ValueError: shapes that disagree, a dial out of range or of a method that is not taken.
        NotImplementedError: a combination that the method does not take, or a derivative that
            there is none of: by attn_mask, with out, forward mode, and (by backward) second ones.
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
    if is_tensor(query):
        from smyrf import torch as smyrf_torch

        return smyrf_torch.attention(
            query, key, value, plain(options), plan, out, return_lse, return_stats
        )
    return _arrays.attention(query, key, value, options, plan, out, return_lse, return_stats)


def plan(
    query: Any,
    key: Any,
    value: Any = None,
    attn_mask: Any = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
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
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    method: str = "tree",
    tolerance: float | None = None,
    max_density: float | None = None,
    seed: int = 0,
    window: tuple[int, int] | None = None,
    key_padding_mask: Any = None,
    query_padding_mask: Any = None,
    layout: str = "BHND",
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
        from smyrf import torch as smyrf_torch

        return smyrf_torch.planned(call, query, key, value, options)
    return _arrays.planned(call, query, key, value, options)


def merge(
    out: Any,
    lse: Any,
    other_out: Any,
    other_lse: Any,
    *,
    layout: str = "BHND",
    num_threads: int | None = None,
) -> tuple[Any, Any]:
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
        from smyrf import torch as smyrf_torch

        return smyrf_torch.merge(out, lse, other_out, other_lse, layout, num_threads)
    return _arrays.merge(out, lse, other_out, other_lse, layout, num_threads)
