"""Errors of `tree` against `dense`, as docs/contract.md defines them, a (batch, query head)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Errors(NamedTuple):
    """One value a head: relative error of out, RMS error of lse in nats, and the 95th percentile
    over queries of a query's own relative error."""

    out: Array
    lse: Array
    query: Array


def measure(
    out: Array, lse: Array | None, dense: Array, dense_lse: Array | None, value: Array
) -> Errors:
    """out and dense (1, Hq, N, Dv), lse (1, Hq, N), value (1, Hkv, Nk, Dv)."""
    value = value[0].astype(np.float64)
    deviation = np.sqrt(((value - value.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1))
    floor = 0.01 * np.repeat(deviation, out.shape[1] // len(value))  # a head of queries
    off = np.linalg.norm(out[0].astype(np.float64) - dense[0], axis=2)  # (Hq, N)
    size = np.linalg.norm(dense[0].astype(np.float64), axis=2)

    def norm(rows: Array) -> Array:
        return np.sqrt((rows**2).sum(axis=1))

    least = floor * np.sqrt(out.shape[2])
    by_query = off / np.maximum(size, floor[:, None])
    off_lse = np.zeros(len(off))
    if lse is not None and dense_lse is not None:
        off_lse = np.sqrt(((lse[0].astype(np.float64) - dense_lse[0]) ** 2).mean(axis=1))
    return Errors(
        norm(off) / np.maximum(norm(size), least), off_lse, np.quantile(by_query, 0.95, axis=1)
    )
