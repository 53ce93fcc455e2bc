"""The simplest form of `tree`, one head at a time and slow: what it gains by its later parts.

Two balanced trees in the queries' and keys' own metrics, one level of summaries of 16 keys, and
blocks of 16 queries that open the summaries of the largest expected error until what is left is
below `tolerance` times the values' deviation: a prediction, not a calibration. No sinks, no levels,
no known keys.
"""

from __future__ import annotations

import math

import torch

BLOCK = 16  # queries a block, keys a summary; numbers of rows are BLOCK times a power of 2


def simple_tree(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, tolerance: float
) -> tuple[torch.Tensor, float]:
    """out (Nq, Dv) and density, of q (Nq, D), k (Nk, D) and v (Nk, Dv)."""
    centred = k - k.mean(0)
    query_order = _balanced(q @ _root(centred.T @ centred / len(k)))
    key_order = _balanced(centred @ _root(q.T @ q / len(q)))
    blocks = q[query_order].view(-1, BLOCK, q.shape[1])
    keys = centred[key_order].view(-1, BLOCK, k.shape[1])
    values = v[key_order].view(-1, BLOCK, v.shape[1])

    means, mean_values = keys.mean(1), values.mean(1)
    apart = keys - means[:, None]
    covariances = apart.transpose(1, 2) @ apart / BLOCK
    spreads = (values - mean_values[:, None]).square().sum(2).mean(1).sqrt()
    mean_queries = blocks.mean(1)
    # A logit's variance over a summary's keys, for a block's mean query.
    variance = torch.einsum("bd,nde,be->bn", mean_queries, covariances, mean_queries) * scale**2
    pseudo = blocks @ means.T * scale + math.log(BLOCK) + variance[:, None] / 2

    expected = (pseudo.softmax(2) * variance.sqrt()[:, None]).mean(1) * spreads
    falling, by_error = expected.sort(1, descending=True)
    left = falling.flip(1).cumsum(1).flip(1)
    deviation = (v - v.mean(0)).norm(dim=1).mean()
    opened = torch.zeros_like(expected, dtype=torch.bool)
    opened.scatter_(1, by_error, left > tolerance * deviation)

    exact = blocks @ centred[key_order].T * scale
    exact = exact.masked_fill(~opened.repeat_interleave(BLOCK, 1)[:, None], -math.inf)
    logits = torch.cat([exact, pseudo.masked_fill(opened[:, None], -math.inf)], 2)
    out = torch.empty(len(q), v.shape[1])
    out[query_order] = (logits.softmax(2) @ torch.cat([v[key_order], mean_values])).flatten(0, 1)
    pairs = int(opened.sum()) * BLOCK**2 + int((~opened).sum()) * BLOCK
    return out, pairs / (len(q) * len(k))


def _root(moment: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(1e-6 * values.max()).sqrt()) @ vectors.T


def _balanced(rows: torch.Tensor) -> torch.Tensor:
    """Their order in which every BLOCK is a leaf of a tree split along principal directions."""
    index = torch.arange(len(rows)).view(1, -1)
    while index.shape[1] > BLOCK:
        nodes, size = index.shape
        apart = rows[index] - rows[index].mean(1, keepdim=True)
        directions = torch.linalg.eigh(apart.transpose(1, 2) @ apart).eigenvectors[:, :, -1:]
        rank = (apart @ directions).squeeze(2).argsort(1)
        index = index.gather(1, rank).view(2 * nodes, size // 2)
    return index.flatten()
