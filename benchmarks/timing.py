"""Timing: the peers take turns, and the shortest time of each counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports missing GPUs otherwise

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.profiler import ProfilerActivity, profile
from torch.utils.dlpack import to_dlpack

from smyrf import _core

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# What smyrf.attention hands to the C++ entry when nothing is asked for; the rest is None.
DEFAULTS: dict[str, Any] = {
    "is_causal": False,
    "enable_gqa": False,
    "method": "dense",
    "seed": 0,
    "layout": "BHND",
}


def best(peers: Mapping[str, Callable[[], Any]], seconds: float, least: int) -> dict[str, float]:
    """Shortest time of each peer over rounds in which all take turns; the first round warms up."""
    found = dict.fromkeys(peers, float("inf"))
    end = perf_counter() + seconds
    rounds = 0
    while rounds < least or perf_counter() < end:
        for name, call in peers.items():
            start = perf_counter()
            call()
            found[name] = min(found[name], perf_counter() - start)
        rounds += 1
    return found


def entry(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    threads: int,
    with_statistics: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, Callable[[], Any]]:
    """out, and a call of the C++ entry that writes it: checks, planning and execution. The call
    gives the statistics where asked for."""
    out = torch.empty_like(query)
    settings = {**DEFAULTS, "num_threads": threads, **options}

    def call() -> Any:
        rows = (to_dlpack(tensor) for tensor in (query, key, value, out))
        return _core.attention(*rows, None, None, with_statistics, settings)

    return out, call


def check(out: torch.Tensor, expected: torch.Tensor) -> None:
    """The time of a wrong result would mean nothing."""
    tolerance = TOLERANCES[out.dtype]
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def time_mm(threads: int) -> float:
    """Seconds of torch.mm 1024^3 in float32."""
    torch.set_num_threads(threads)
    left, right, product = (torch.randn(1024, 1024) for _ in range(3))
    return best({"mm": lambda: torch.mm(left, right, out=product)}, 0.0, 8)["mm"]


def kernels(depths: Iterable[int], dtype: torch.dtype) -> str:
    """Which of SDPA's kernels run, by torch's profiler; N doesn't matter to the choice."""
    names: set[str] = set()
    shapes = [(1, 1, 128, depth, dtype, causal) for depth in depths for causal in (False, True)]
    shapes += [(h, 1, 1, 64, kind, False) for h in (1, 3) for kind in (dtype, torch.bfloat16)]
    for heads, key_heads, n, depth, kind, causal in shapes:
        q = torch.randn(1, heads, n, depth).to(kind)
        k = torch.randn(1, key_heads, 128, depth).to(kind)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            sdpa(q, k, k, is_causal=causal, enable_gqa=heads != key_heads)
        events = [event.key for event in profiled.key_averages()]
        names.update(name for name in events if name.startswith("aten::_scaled_dot_product"))
    return ", ".join(sorted(names))
