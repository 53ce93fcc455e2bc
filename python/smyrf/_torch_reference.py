"""`smyrf.reference.attention` for float64 tensors, which autograd can differentiate.

It is made of torch operations alone. For every method a head is one softmax over columns. The
columns are the keys and, for `tree`, also the nodes of the key tree. The plan says which columns a
query evaluates, and how many times.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch

import smyrf
from smyrf import _core, collector
from smyrf._call import MASKS, check_arrays
from smyrf._shapes import is_plain, shaped


class Head(NamedTuple):
    """One query head of one batch entry."""

    plan: _core.Plan
    b: int  # index in the batch
    h: int  # index of the query head
    scale: float  # factor on q.k

    @property
    def key_head(self) -> int:
        return self.h // (self.plan.query_heads // self.plan.key_heads)

    @property
    def dense(self) -> bool:
        """Whether each query evaluates every allowed key once, and no node."""
        method = self.plan.method
        return method == "dense" or (
            method == "tree" and bool(self.plan.dense_heads[self.b, self.h])
        )


class Columns(NamedTuple):
    """What the queries of a head can attend to: keys, or nodes of the key tree."""

    logits: torch.Tensor  # (Nq, columns)
    values: torch.Tensor  # (columns, Dv)
    counts: torch.Tensor  # (Nq, columns): how many times a query evaluates a column


class Summaries(NamedTuple):
    """What stands for the keys and values of each node, of one (batch, key head)."""

    keys: torch.Tensor  # (nodes, D): mean key
    values: torch.Tensor  # (nodes, Dv): mean value
    log_counts: torch.Tensor  # (nodes,): ln of the number of keys
    directions: torch.Tensor  # (nodes, 32): one direction a node, in the tree's coordinates
    along: torch.Tensor  # (nodes,): variance of the keys along that direction
    across: torch.Tensor  # (nodes,): variance of the keys in all other directions
    profiles: torch.Tensor  # (nodes, 32): the share of `across` in each coordinate


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
    plan: _core.Plan | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of float64 tensors, by autograd's operations.

    Args:
        query, key, value: float64, of the shapes that `smyrf.attention` takes.
        options: the keywords of `smyrf.attention` that are neither rows nor about what is
            returned, each with a value.
        plan: the plan to carry out, or None: one is made of float32 copies.

    Returns:
        out and lse, float64, in the layout of query.

    Raises:
        TypeError, ValueError, NotImplementedError: as `smyrf.attention`.
    """
    check_arrays(
        torch.Tensor, query=query, key=key, value=value, **{name: options[name] for name in MASKS}
    )
    call = None if is_plain(query, key, value, options) else shaped(query, key, value, options)
    if call is not None:
        query, key, value, options, _ = call
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
    seed = plan.seed if plan.method == "lsh" else options["seed"]
    kept = _kept(plan, options["dropout_p"], seed)
    for b, h in itertools.product(range(batch), range(heads)):
        head = Head(plan, b, h, scale)
        q, k, v = query[b, h], key[b, head.key_head], value[b, head.key_head]
        bias = None if attn_mask is None else attn_mask[b, h]
        factors = None if kept is None else kept[b, h]
        out[b, h], lse[b, h] = _attend(q, k, v, bias, factors, head)
    out = out.transpose(1, 2) if heads_last else out
    return (out, lse) if call is None else call.restored(out, lse)


def _checked_plan(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
    plan: _core.Plan | None,
) -> _core.Plan:
    """The plan to carry out. A call with float32 copies checks the arguments, so it raises here."""
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
            plan = smyrf.plan(*copies, attn_mask, **options)
        smyrf.attention(*copies, attn_mask, plan=plan, **options)
    return plan


def _kept(plan: _core.Plan, dropout_p: float, seed: int) -> torch.Tensor | None:
    """(B, Hq, Nq, Nk): what dropout multiplies the weights by, 0 or 1 / (1 - dropout_p).

    The core decides which pairs are kept, and a `dense` call shows it. The logits of that call are
    all 0, and its value j is row j of the identity matrix: out[i, j] is above 0 where dropout kept
    the pair (i, j).
    """
    if dropout_p == 0.0:
        return None
    if dropout_p == 1.0:
        shape = plan.batch, plan.query_heads, plan.queries, plan.keys
        return torch.zeros(shape, dtype=torch.float64)
    query = torch.zeros(plan.batch, plan.query_heads, plan.queries, 1, dtype=torch.float32)
    key = torch.zeros(plan.batch, 1, plan.keys, 1, dtype=torch.float32)
    rows = torch.eye(plan.keys, dtype=torch.float32).expand(plan.batch, 1, -1, -1)
    options: dict[str, Any] = {
        "enable_gqa": True,
        "method": "dense",
        "seed": seed,
        "positions": plan.positions,
    }
    with collector.suspended():
        shown = [
            smyrf.attention(query, key, value, dropout_p=dropout_p, **options)
            for value in torch.split(rows, 512, 3)
        ]
    return (torch.cat(shown, 3) > 0).double() / (1.0 - dropout_p)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    kept: torch.Tensor | None,
    head: Head,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (Nq, Dv) and lse (Nq) of one head."""
    plan, b, h = head.plan, head.b, head.h
    # Padded rows may hold anything, NaN too, so zeros take their place.
    valid_queries = torch.from_numpy(plan.valid_queries[b])
    valid_keys = torch.from_numpy(plan.valid_keys[b])[:, None]
    query = torch.where(valid_queries[:, None], query, 0.0)
    key, value = (torch.where(valid_keys, x, 0.0) for x in (key, value))
    if plan.non_finite[b, h]:
        lse = torch.where(valid_queries, math.nan, -math.inf)
        out = torch.where(valid_queries, math.nan, 0.0)[:, None].expand(-1, value.shape[1])
        return out, lse
    columns = _keys(query, key, value, attn_mask, head)
    if plan.method == "tree" and any(plan.nodes(b, h)):
        columns = _joined(columns, _nodes(query, key, value, head))
    weights, lse = _softmax(columns)
    if kept is not None:
        weights = weights * kept
    return weights @ columns.values, lse


def _softmax(columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (Nq, columns) and lse (Nq).

    A column that a query evaluates n times has n times the weight: ln n is added to its logit. A
    query without any column gets weights of 0 and an lse of -inf.
    """
    evaluated = columns.counts > 0
    logits = torch.where(evaluated, columns.logits + columns.counts.log(), -math.inf)
    seen = evaluated.any(1)
    logits = torch.where(seen[:, None], logits, 0.0)
    lse = logits.logsumexp(1)
    weights = torch.where(seen[:, None], (logits - lse[:, None]).exp(), 0.0)
    return weights, torch.where(seen, lse, -math.inf)


def _joined(first: Columns, second: Columns) -> Columns:
    """The columns of both."""
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
    head: Head,
) -> Columns:
    """The keys as columns."""
    logits = head.scale * query @ key.T
    counts = _allowed(head.plan, head.b).double() if head.dense else _evaluated(head)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        counts = counts * attn_mask
    elif attn_mask is not None:
        forbidden = attn_mask == -math.inf
        counts = counts * ~forbidden
        logits = logits + torch.where(forbidden, 0.0, attn_mask)
    return Columns(logits, value, counts)


def _allowed(plan: _core.Plan, b: int) -> torch.Tensor:
    """(Nq, Nk) bool: the pairs that padding, causality and window allow."""
    # Without positions the last query stands at the last key.
    first_query, first_key = plan.positions or (plan.keys - plan.queries, 0)
    i = torch.arange(plan.queries)[:, None] + first_query
    j = torch.arange(plan.keys) + first_key
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


def _evaluated(head: Head) -> torch.Tensor:
    """(Nq, Nk): how many times the ranges of an `lsh` or `tree` plan hold each pair."""
    plan, b, h, _ = head
    counts = torch.zeros(plan.queries, plan.keys, dtype=torch.float64)
    for r in range(max(1, plan.n_hashes)):
        query_order, key_order, blocks = plan.head(r, b, h)
        if plan.method == "tree":
            key_order = plan.tree(b, head.key_head)[0]
        for begin, end, ranges in blocks:
            rows = torch.tensor(query_order[begin:end])[:, None]
            for first, last, _ in ranges:
                counts[rows, torch.tensor(key_order[first:last])] += 1
    return counts


def _nodes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, head: Head) -> Columns:
    """The nodes of the key tree as columns.

    A node of n keys has the logit scale q.mean(k) + ln n + c(u). u is the variance of the n logits
    scale q.k, as the node's summary gives it.
    """
    plan, b, h, scale = head
    nodes = _summaries(key, value, plan, b, head.key_head)
    query_basis = torch.from_numpy(plan.tree_constants(b, head.key_head)[0]).double()
    y = scale * query @ query_basis
    u = (y @ nodes.directions.T) ** 2 * nodes.along + y**2 @ nodes.profiles.T * nodes.across
    logits = scale * query @ nodes.keys.T + nodes.log_counts + _correction(u, nodes.log_counts)
    counts = torch.zeros_like(logits)
    query_order, _, blocks = plan.head(0, b, h)
    for (begin, end, _), closed in zip(blocks, plan.nodes(b, h), strict=True):
        counts[torch.tensor(query_order[begin:end])[:, None], torch.tensor(closed).long()] = 1
    return Columns(logits, nodes.values, counts)


def _correction(u: torch.Tensor, log_count: torch.Tensor) -> torch.Tensor:
    """c(u) = u / 2, or sqrt(2 u ln n) - ln n where u > 2 ln n."""
    wide = u > 2 * log_count
    # The derivative of the root is infinite at 0. Backward would multiply it by 0 and give NaN.
    # So nodes that take u / 2 compute the root of 1.
    root = torch.where(wide, u, 1.0).sqrt() * (2 * log_count).sqrt()
    return torch.where(wide, root - log_count, u / 2)


def _summaries(
    key: torch.Tensor, value: torch.Tensor, plan: _core.Plan, b: int, g: int
) -> Summaries:
    constants = (torch.from_numpy(x).double() for x in plan.tree_constants(b, g))
    _, key_basis, directions, profiles = constants
    coordinates = key @ key_basis
    key_order, _, nodes = plan.tree(b, g)
    order = torch.tensor(key_order)
    members = [order[begin:end] for begin, end, _, _ in nodes]
    centred = [coordinates[m] - coordinates[m].mean(0) for m in members]
    along = torch.stack([(x @ d).square().mean() for x, d in zip(centred, directions, strict=True)])
    variances = torch.stack([x.square().mean(0).sum() for x in centred])
    # The root above each node. Children stand in the order of their parents.
    roots = list(range(len(profiles)))
    for node, (_, _, _, children) in enumerate(nodes):
        roots += [roots[node]] * children
    return Summaries(
        keys=torch.stack([key[m].mean(0) for m in members]),
        values=torch.stack([value[m].mean(0) for m in members]),
        log_counts=torch.tensor([math.log(len(m)) for m in members], dtype=torch.float64),
        directions=directions,
        along=along,
        across=(variances - along).clamp(min=0),
        profiles=profiles[roots],
    )
