"""What a run does and costs: records of chosen layers, time inside attention, peak memory."""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import smyrf
from smyrf import collector


@contextmanager
def collect_in(modules: Iterable[nn.Module], errors: bool) -> Iterator[list[smyrf.Record]]:
    """`smyrf.collect`, open only while one of these modules runs.

    A decoder calls attention hundreds of times a sentence, and the error of layers that nobody
    asked about would cost more than all the rest.
    """
    records: list[smyrf.Record] = []

    def open_before(module: nn.Module, arguments: Any) -> None:
        records_of_call = stack.enter_context(smyrf.collect(errors=errors))
        stack.callback(lambda: records.extend(records_of_call))

    def close_after(module: nn.Module, arguments: Any, out: Any) -> None:
        stack.close()

    with ExitStack() as hooks, ExitStack() as stack:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(open_before).remove)
            hooks.callback(module.register_forward_hook(close_after).remove)
        yield records


@dataclass(frozen=True)
class Masks:
    """How a layer calls attention: the most keys, and what decides which methods can take it."""

    keys: int
    options: frozenset[str]  # of "is_causal", "window" and "attn_mask", those that it gives

    @property
    def says(self) -> str:
        """Why a method that takes none of them can't take this layer."""
        names = {"is_causal": "causal", "window": "a sliding window", "attn_mask": "masked"}
        return " and ".join(names[option] for option in sorted(self.options))

    def refused(self, method: smyrf.Method) -> bool:
        """Whether smyrf says that the method can't take calls with these options."""
        method = "tree" if method == "auto" else method
        rows = np.eye(2, dtype=np.float32)[None, None]
        given: dict[str, Any] = {
            "is_causal": True,
            "window": (1, 0),
            "attn_mask": np.ones((2, 2), np.bool_),
        }
        try:
            with collector.suspended():
                options = {name: given[name] for name in self.options}
                smyrf.attention(rows, rows, rows, method=method, **options)
        except NotImplementedError:
            return True
        return False


class _Watch(collector.Collector):
    """Keeps how each layer called, in place of records."""

    def __init__(self) -> None:
        super().__init__(errors=False, outer=None)
        self.seen: dict[str, Masks] = {}

    def add(
        self, statistics: Any, query: Any, key: Any, value: Any, out: Any, options: Any
    ) -> None:
        layer = str(collector.layer())
        given = {name for name in ("is_causal", "window") if options.get(name)}
        given |= {"attn_mask"} & {k for k, v in options.items() if v is not None}
        before = self.seen.get(layer, Masks(0, frozenset()))
        rows = 1 if options.get("layout") == "BNHD" else 2
        self.seen[layer] = Masks(max(before.keys, key.shape[rows]), before.options | given)


@contextmanager
def watch_masks() -> Iterator[dict[str, Masks]]:
    """By layer, how smyrf's attention is called inside the block."""
    watch = _Watch()
    with collector.received_by(watch):
        yield watch.seen


@dataclass
class Calls:
    """All calls of attention by one module: seconds of wall time."""

    seconds: float = 0.0


class Clock(Protocol):
    """What a clock of attention has found."""

    calls: defaultdict[int, Calls]  # by id of the module


class AttentionClock:
    """Times every call that transformers makes to an attention function, by module.

    A function that transformers has no name for, as its `eager` ones, is not timed.

    The same clock stands around every method, transformers' own included, so that what it costs
    to get from Python to the arithmetic and back counts for each of them. Use as a context manager.
    """

    def __init__(self, *names: str) -> None:
        self.names = names  # as in model.config._attn_implementation
        self.calls: defaultdict[int, Calls] = defaultdict(Calls)  # by id of the module

    def __enter__(self) -> AttentionClock:
        self.names = tuple(name for name in self.names if name in ALL_ATTENTION_FUNCTIONS)
        for name in self.names:
            ALL_ATTENTION_FUNCTIONS[name] = self._timed(ALL_ATTENTION_FUNCTIONS[name])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self.names:  # what was registered for all shows again
            del ALL_ATTENTION_FUNCTIONS[name]

    def _timed(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        def timed(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            calls = self.calls[id(module)]
            start = time.perf_counter()
            out = attend(module, query, key, value, *args, **kwargs)
            calls.seconds += time.perf_counter() - start
            return out

        return timed


class LayerClock:
    """Times layers of BigGAN's self-attention less their convolutions and pools, by module.

    What is left is attention, whichever way the layer computes it, and the sum with its input. Use
    as a context manager.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.layers = list(layers)
        self.calls: defaultdict[int, Calls] = defaultdict(Calls)

    def __enter__(self) -> LayerClock:
        self._hooks = ExitStack()
        for layer in self.layers:
            calls = self.calls[id(layer)]
            self._time(layer, calls, 1)
            for part in layer.children():
                if not isinstance(part, nn.Softmax):
                    self._time(part, calls, -1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def _time(self, module: nn.Module, calls: Calls, sign: int) -> None:
        def start(*call: Any) -> None:
            calls.seconds -= sign * time.perf_counter()

        def stop(*call: Any) -> None:
            calls.seconds += sign * time.perf_counter()

        # First, or the hook of a spectral norm would count as attention.
        self._hooks.callback(module.register_forward_pre_hook(start, prepend=True).remove)
        self._hooks.callback(module.register_forward_hook(stop).remove)


class PeakMemory:
    """Peak resident memory of this process while the context lasts, in bytes, Linux only.

    Free memory goes back to the system first and the kernel's high-water mark is reset
    (`/proc/self/clear_refs`); `above` is what came on top of what was resident at the start, the
    model's weights for example. Both are None where the system doesn't tell.
    """

    def __init__(self) -> None:
        self.peak: int | None = None
        self.above: int | None = None

    def __enter__(self) -> PeakMemory:
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self._start: int | None = _status("VmRSS")
        except (OSError, AttributeError):
            self._start = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._start is not None:
            self.peak = _status("VmHWM")
            self.above = self.peak - self._start


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
