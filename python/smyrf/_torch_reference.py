"""`smyrf.reference.attention` for float64 tensors, in torch operations that autograd knows.

Whatever the method, a head is one softmax over columns: its keys and, for `tree`, the nodes of its
key tree. The plan says which columns each query evaluates, and how often.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch

import smyrf
from smyrf import _core, collector
from smyrf._call import MASKS, check_arrays


class Columns(NamedTuple):
    """What the queries of one (batch, query head) may meet."""

    logits: torch.Tensor  # (Nq, columns)
    values: torch.Tensor  # (columns, Dv)
    counts: torch.Tensor  # (Nq, columns): how often a query evaluates a column


class Summaries(NamedTuple):
    """Of the nodes of one (batch, key head)."""

    keys: torch.Tensor  # (nodes, D): means
    values: torch.Tensor  # (nodes, Dv): means
    log_counts: torch.Tensor  # (nodes,)
    directions: torch.Tensor  # (nodes, 32)
    along: torch.Tensor  # (nodes,): variance of the keys along the direction
    across: torch.Tensor  # (nodes, 32): what it leaves of the variances of coordinates


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
    plan: _core.Plan | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of float64 tensors, in their layout; options as the core takes them."""
    plan = _checked_plan(query, key, value, options, plan)
    heads_last = options["layout"] == "BNHD"
    if heads_last:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    batch, heads, queries, depth = query.shape
    scale = depth**-0.5 if options["scale"] is None else options["scale"]
    attn_mask = options["attn_mask"]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(batch, heads, queries, key.shape[2])
    out = query.new_zeros(batch, heads, queries, value.shape[3])
    lse = query.new_zeros(batch, heads, queries)
    for b, h in itertools.product(range(batch), range(heads)):
        g = _key_head(plan, h)
        bias = None if attn_mask is None else attn_mask[b, h]
        out[b, h], lse[b, h] = _head(query[b, h], key[b, g], value[b, g], bias, scale, plan, b, h)
    return out.transpose(1, 2) if heads_last else out, lse


def _checked_plan(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
    plan: _core.Plan | None,
) -> _core.Plan:
    """The plan of a call of float32 copies, which is made, so that it raises what it has to."""
    check_arrays(torch.Tensor, key=key, value=value, **{name: options[name] for name in MASKS})
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"{name}: got dtype {tensor.dtype}, expected that of query, {query.dtype}; "
                "convert it"
            )
    options = dict(options)
    attn_mask = options.pop("attn_mask")
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.float()
    with torch.no_grad(), collector.suspended():
        copies = query.float(), key.float(), value.float()
        if plan is None:
            plan = smyrf.plan(*copies[:2], attn_mask, value=copies[2], **options)
        smyrf.attention(*copies, attn_mask, plan=plan, **options)
    return plan


def _head(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    scale: float,
    plan: _core.Plan,
    b: int,
    h: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (Nq, Dv) and lse (Nq) of one (batch, query head)."""
    # Padded rows are never read.
    valid_queries = torch.from_numpy(plan.valid_queries[b])
    valid_keys = torch.from_numpy(plan.valid_keys[b])[:, None]
    query = torch.where(valid_queries[:, None], query, 0.0)
    key, value = (torch.where(valid_keys, x, 0.0) for x in (key, value))
    if plan.non_finite[b, h]:
        lse = torch.where(valid_queries, math.nan, -math.inf)
        out = torch.where(valid_queries, math.nan, 0.0)[:, None].expand(-1, value.shape[1])
        return out, lse
    columns = _keys(query, key, value, attn_mask, scale, plan, b, h)
    if plan.method == "tree" and any(plan.nodes(b, h)):
        columns = _joined(columns, _nodes(query, key, value, scale, plan, b, h))
    return _softmax(columns)


def _softmax(columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits plus ln of the counts. Rows without a column give 0 and lse -inf."""
    evaluated = columns.counts > 0
    logits = torch.where(evaluated, columns.logits + columns.counts.log(), -math.inf)
    seen = evaluated.any(1)
    logits = torch.where(seen[:, None], logits, 0.0)
    lse = logits.logsumexp(1)
    out = (logits - lse[:, None]).exp() @ columns.values
    return torch.where(seen[:, None], out, 0.0), torch.where(seen, lse, -math.inf)


def _joined(first: Columns, second: Columns) -> Columns:
    return Columns(
        torch.cat((first.logits, second.logits), 1),
        torch.cat((first.values, second.values), 0),
        torch.cat((first.counts, second.counts), 1),
    )


def _keys(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    scale: float,
    plan: _core.Plan,
    b: int,
    h: int,
) -> Columns:
    logits = scale * query @ key.T
    if plan.method == "dense" or (plan.method == "tree" and plan.dense_heads[b, h]):
        counts = _allowed(plan, b).to(logits.dtype)
    else:
        counts = _evaluated(plan, b, h)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        counts = counts * attn_mask
    elif attn_mask is not None:
        forbidden = attn_mask == -math.inf
        counts = counts * ~forbidden
        logits = logits + torch.where(forbidden, 0.0, attn_mask)
    return Columns(logits, value, counts)


def _allowed(plan: _core.Plan, b: int) -> torch.Tensor:
    """(Nq, Nk) bool: pairs that padding, causality and window leave."""
    i = torch.arange(plan.queries)[:, None] + plan.keys - plan.queries  # lower right corners meet
    j = torch.arange(plan.keys)
    allowed = torch.from_numpy(plan.valid_queries[b])[:, None] & torch.from_numpy(
        plan.valid_keys[b]
    )
    left, right = plan.window or (-1, -1)
    if plan.is_causal:
        allowed &= j <= i
    if left >= 0:
        allowed &= j >= i - left
    if right >= 0:
        allowed &= j <= i + right
    return allowed


def _evaluated(plan: _core.Plan, b: int, h: int) -> torch.Tensor:
    """(Nq, Nk): how often the ranges of an `lsh` or `tree` plan hold a pair."""
    counts = torch.zeros(plan.queries, plan.keys, dtype=torch.float64)
    for r in range(max(1, plan.n_hashes)):
        query_order, key_order, blocks = plan.head(r, b, h)
        if plan.method == "tree":
            key_order = plan.tree(b, _key_head(plan, h))[0]
        for begin, end, ranges in blocks:
            rows = torch.tensor(query_order[begin:end])[:, None]
            for first, last, _ in ranges:
                counts[rows, torch.tensor(key_order[first:last])] += 1
    return counts


def _nodes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    plan: _core.Plan,
    b: int,
    h: int,
) -> Columns:
    """A node of n keys: logit scale q.mean(k) + ln n + c(u), u the logits' variance over it."""
    g = _key_head(plan, h)
    nodes = _summaries(key, value, plan, b, g)
    query_basis = torch.from_numpy(plan.tree_constants(b, g)[0]).double()
    y = scale * query @ query_basis
    u = (y @ nodes.directions.T) ** 2 * nodes.along + y**2 @ nodes.across.T
    logits = scale * query @ nodes.keys.T + nodes.log_counts + _correction(u, nodes.log_counts)
    counts = torch.zeros_like(logits)
    query_order, _, blocks = plan.head(0, b, h)
    for (begin, end, _), closed in zip(blocks, plan.nodes(b, h), strict=True):
        counts[torch.tensor(query_order[begin:end])[:, None], torch.tensor(closed).long()] = 1
    return Columns(logits, nodes.values, counts)


def _correction(u: torch.Tensor, log_count: torch.Tensor) -> torch.Tensor:
    """c(u) = u / 2, or sqrt(2 u ln n) - ln n where u > 2 ln n."""
    wide = u > 2 * log_count
    # The root has no derivative at 0, and 0 times its infinity would be NaN: it is kept from both.
    root = torch.where(wide, u, 1.0).sqrt() * (2 * log_count).sqrt()
    return torch.where(wide, root - log_count, u / 2)


def _summaries(
    key: torch.Tensor, value: torch.Tensor, plan: _core.Plan, b: int, g: int
) -> Summaries:
    _, key_basis, directions = (torch.from_numpy(x).double() for x in plan.tree_constants(b, g))
    coordinates = key @ key_basis
    key_order, _, nodes = plan.tree(b, g)
    order = torch.tensor(key_order)
    members = [order[begin:end] for begin, end, _, _ in nodes]
    centred = [coordinates[m] - coordinates[m].mean(0) for m in members]
    along = torch.stack([(x @ d).square().mean() for x, d in zip(centred, directions, strict=True)])
    variances = torch.stack([x.square().mean(0) for x in centred])
    return Summaries(
        keys=torch.stack([key[m].mean(0) for m in members]),
        values=torch.stack([value[m].mean(0) for m in members]),
        log_counts=torch.tensor([math.log(len(m)) for m in members], dtype=torch.float64),
        directions=directions,
        along=along,
        across=(variances - directions.square() * along[:, None]).clamp(min=0),
    )


def _key_head(plan: _core.Plan, h: int) -> int:
    return h // (plan.query_heads // plan.key_heads)
