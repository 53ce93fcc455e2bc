"""`smyrf.attention`."""

from __future__ import annotations

from typing import Any, Literal, overload

from smyrf import _arrays
from smyrf._call import is_tensor
from smyrf._core import Plan, Statistics
from smyrf._types import Array, Layout, Method, Precision


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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Array | None = None,
    return_lse: Literal[False] = False,
    return_stats: Literal[False] = False,
) -> Array: ...
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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Array | None = None,
    return_lse: Literal[True],
    return_stats: Literal[False] = False,
) -> tuple[Array, Array]: ...
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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Array | None = None,
    return_lse: Literal[False] = False,
    return_stats: Literal[True],
) -> tuple[Array, Statistics]: ...
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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Array | None = None,
    return_lse: Literal[True],
    return_stats: Literal[True],
) -> tuple[Array, Array, Statistics]: ...
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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Array | None = None,
    return_lse: bool = False,
    return_stats: bool = False,
) -> Array | tuple[Array, Array] | tuple[Array, Statistics] | tuple[Array, Array, Statistics]: ...
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
    num_threads: int | None = None,
    plan: Plan | None = None,
    out: Any = None,
    return_lse: bool = False,
    return_stats: bool = False,
) -> Any:
    """softmax(scale query key^T + masks) value, by the method asked for.

    Sizes are B (batch), Hq and Hkv (heads of query, and of key and value), Nq and Nk (their rows),
    D (elements in a row of query and key) and Dv (in one of value). A pair of query and key takes
    part if every mask allows it. A query that is padded, or may see no key, gives 0, and lse -inf.
    No array is converted. query, key or value is copied only if its last dimension is not
    contiguous.

    Other ranks are those of `scaled_dot_product_attention`: (N, D), (batch, N, D), or several
    dimensions of batch before the heads. Three dimensions are (heads, N, D) if enable_gqa is set,
    and (N, heads, D) if layout is "BNHD". Dimensions before the last two broadcast; one dimension
    of batch does so without a copy. out has the broadcast shape, and lse that shape without its
    last dimension. A padding mask has the dimensions of batch and N; attn_mask has at most as many
    dimensions as out. `Plan` and `Statistics` count one batch, the product of its dimensions, and
    one head where no dimension counts heads.

    PyTorch's autograd gives the gradients of out and lse by query, key and value. There is none by
    a mask, and no second derivative. `lsh` and `tree` give the gradients of what they computed,
    with the plan as a constant. A tolerance bounds the error of out, not that of gradients. Where a
    gradient is needed, "auto" therefore takes "dense" unless a tolerance is given.

    Args:
        query: (B, Hq, Nq, D) float32, float16 or (PyTorch) bfloat16, on the CPU. D is 2048 or less.
        key: (B, Hkv, Nk, D), of the dtype of query.
        value: (B, Hkv, Nk, Dv), of the dtype of query. Dv is 2048 or less.
        attn_mask: broadcastable to (B, Hq, Nq, Nk). bool: True takes part. float: added to the
            logits. Default none. `dense` only.
        dropout_p: the probability, from 0 to 1, that the weight of an evaluated pair is dropped
            after softmax; other weights are divided by 1 - dropout_p. seed, batch, head and the
            indices of query and key decide which are dropped. lse does not change. "auto" takes
            "dense" if it is above 0. Default 0. Not for `tree`.
        is_causal: query i sees keys 0 to i + Nk - Nq, so that the last query sees all. (In
            `scaled_dot_product_attention` it sees keys 0 to i.) Default False. `dense` only.
        scale: factor on the logits, default 1/sqrt(D). Finite; above 0 for `lsh`.
        enable_gqa: allows fewer key heads than query heads: query head h uses key head
            h // (Hq / Hkv). Default False.
        method: "auto" by default.
            "dense" evaluates every allowed pair.
            "lsh" evaluates pairs in balanced clusters of an asymmetric hash (SMYRF, Daras et al.,
            NeurIPS 2020).
            "tree" makes balanced trees of queries and keys. It summarises far nodes of keys, and
            opens near ones until sampled rows meet the tolerance.
            "auto" takes "tree" from 2048 queries and keys on (1536 where query heads share keys) if
            no mask but padding is given and the tolerance is not 0, else "dense", whose products
            it may narrow (see precision). The environment
            variable SMYRF_METHOD ("dense" or "tree") replaces "auto".
        n_hashes: rounds of hashing, 1 to 4096, default 8. `lsh` only.
        cluster_size: keys a cluster, at least 1, default 32. `lsh` only.
        tolerance: the error to aim for in every (batch, query head), from 0 (evaluate every pair)
            to below 1. It holds for the relative error of out and for the RMS error of lse, in
            nats. Relative means to the norm of out, or to 1 % of the values' deviation from their
            mean where that is more. Default SMYRF_TOLERANCE, else 0.05. `tree` and "auto" only.
        max_density: the largest part of all pairs that may be evaluated, above 0 to 1. Each query
            evaluates 24 or 40 keys, and a summary of about every 512 keys, in any case. Statistics
            say what error to expect. Default no limit. `tree` only.
        precision: what the products of evaluated pairs are computed in: "auto" (default),
            "float32", "int16" or "int8". With "auto", "dense" has float32, and a method with a
            tolerance has the narrowest whose expected error is within it. Any other is taken
            whatever the tolerance. Heads with fewer than 128 valid queries or 256 valid keys, or
            with rows that are not finite, have float32. So have all heads on processors without
            such products. Statistics say what each head had. Not for `lsh`, nor with dropout.
        seed: chooses the hash directions of `lsh`, the calibration rows of `tree` and what dropout
            drops. 0 to 2^63 - 1, default 0. With dropout, take another seed in each call.
        window: (left, right): query i sees keys from i + Nk - Nq - left to i + Nk - Nq + right;
            -1 is no bound. Default no window. `dense` only.
        positions: (first_query, first_key): where query 0 and key 0 stand in a longer sequence, of
            which the rows are a part. From 0 up; all positions are below 2^31. Causality, window
            and dropout count by positions, and so does `tree` where it looks for the keys near a
            query. The result of `dense` is therefore exactly that part of the whole; `lsh` and
            `tree` plan each part by itself. `smyrf.merge` joins the results of disjoint keys.
            Default: query i stands at i + Nk - Nq for masks, and dropout counts from 0.
        key_padding_mask: bool (B, Nk), True where a key is valid. The others, and their values, are
            never read. Default: all are valid.
        query_padding_mask: bool (B, Nq), True where a query is valid. The others are never read.
            Default: all are valid.
        layout: of query, key, value and out: "BHND" by default, or "BNHD" for (B, N, H, D).
        num_threads: default SMYRF_NUM_THREADS, else PyTorch's number; without PyTorch
            OMP_NUM_THREADS, else all processors. The result has the same bits for any.
        plan: made by `smyrf.plan` for such a call. Its method, dials, padding, causality, window
            and positions apply, and an argument that differs from it raises. Default none.
        out: written to and returned. It has the shape and dtype of the result, and a contiguous
            last dimension. Default a new array.
        return_lse: also return the natural log-sum-exp of every query's logits, float32
            (B, Hq, Nq). That of `lsh` is the paper's weight of all rounds: it can't be merged.
            Default False.
        return_stats: also return `Statistics`. Default False.

    Returns:
        out, then lse if asked for, then statistics if asked for; a tuple if more than one. A tensor
        has the strides that `scaled_dot_product_attention` would give it, so that it can be viewed
        in the same ways.

    Raises:
        TypeError: an array of the wrong kind, dtype, rank or device.
        ValueError: shapes that disagree; a dial out of range, or of another method.
        NotImplementedError: a combination that the method does not take; a derivative that there is
            none of: by attn_mask, of a call with out, in forward mode, or (in backward) a second.
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
    if is_tensor(query):
        from smyrf import _tensors

        attend = _tensors.attention
    else:
        attend = _arrays.attention
    return attend((query, key, value), options, plan, out, return_lse, return_stats)
