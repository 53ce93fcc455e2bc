"""The mask function of `smyrf.transformers`: keeps plain patterns as patterns, O(N) in memory.

transformers describes a mask by a function of absolute positions and a padding mask (batch, keys).
Where the function is plainly causal, bidirectional or a sliding window, layers get a `PatternMask`;
anything else becomes transformers' own full boolean mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from transformers import masking_utils

if not hasattr(masking_utils, "sliding_window_bidirectional_overlay"):
    raise ImportError(
        f"transformers {transformers.__version__} describes masks in an older way, smyrf expects "
        "5.4 or newer; type: pip install -U transformers"
    )

UNBOUNDED = -1


class Band(NamedTuple):
    """Keys a query may see, in positions: `left` before it to `right` after it; -1 = unbounded."""

    left: int
    right: int


class PatternMask:
    """A band and a padding mask in place of a full mask.

    Layers that know it read `band`, `keys` and `padding`. To any other code it behaves as the full
    boolean mask (batch, 1, queries, keys) of transformers' `sdpa`: slicing it, calling a tensor's
    method or passing it to a torch function builds that mask.

    Attributes:
        shape: (batch, 1, queries, keys) of the full mask.
        band: aligned to the lower right of the first `used_keys` keys.
        used_keys: keys from here on are in the future of every query (a static cache's unused
            rows) and must be cut off.
        padding: (batch, used_keys) bool, True = valid, or None where nothing is padded.
        none_in_sdpa: transformers' `sdpa` gives layers no mask here. They then follow their own
            `is_causal`, whatever the band.
    """

    def __init__(
        self,
        shape: torch.Size,
        band: Band,
        used_keys: int,
        padding: torch.Tensor | None,
        full: Callable[[], torch.Tensor],
        none_in_sdpa: bool = False,
    ) -> None:
        self.shape = shape
        self.ndim = len(shape)
        self.dtype = torch.bool
        self.band = band
        self.used_keys = used_keys
        self.padding = padding
        self.full = full
        self.none_in_sdpa = none_in_sdpa

    def contiguous(self) -> PatternMask:
        # `generate` calls it on every mask it prepares; there is nothing to copy.
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        # accelerate's hooks move every argument of a layer to the layer's device.
        if args and not kwargs.get("dtype") and str(args[0]) == "cpu" and len(args) == 1:
            return self
        return self.full().to(*args, **kwargs)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.full()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "full":  # not there yet, while copying
            raise AttributeError(name)
        return getattr(self.full(), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def tensor(argument: Any) -> Any:
            return argument.full() if isinstance(argument, PatternMask) else argument

        named = {name: tensor(argument) for name, argument in (kwargs or {}).items()}
        return function(*(tensor(argument) for argument in args), **named)


def smyrf_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | PatternMask | None = None,
    **kwargs: Any,
) -> PatternMask | torch.Tensor | None:
    """The mask function registered with transformers under the name "smyrf".

    Args:
        batch_size, q_length, kv_length: sizes of the full mask.
        q_offset, kv_offset: positions of the first query and of the first key.
        mask_function: transformers' description of the pattern, in positions.
        attention_mask: (batch, positions) bool, True = valid; a `PatternMask` is returned as it is
            (`generate` prepares masks before it calls the model).
        kwargs: passed on to transformers' `sdpa_mask`.

    Returns:
        A `PatternMask` where the pattern is plain; otherwise what `sdpa_mask` returns.
    """
    if isinstance(attention_mask, PatternMask):
        return attention_mask
    arguments = dict(
        kwargs,
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
    )
    band = plain_band(mask_function)
    # A static cache counts its rows in a tensor. A compiler can't read it.
    unread = isinstance(q_offset, torch.Tensor) and torch.compiler.is_compiling()
    flat = attention_mask is None or attention_mask.ndim == 2
    used_keys = None
    if band is not None and flat and not unread:
        used_keys = _used_keys(band, q_length, kv_length, int(q_offset) - kv_offset)
    if band is None or used_keys is None:
        full: torch.Tensor | None = masking_utils.sdpa_mask(**arguments)
        return full
    # Without its pattern the mask is small: transformers decides, and nothing is built.
    skipped = masking_utils.sdpa_mask(**{**arguments, **_ANY_KEY}) is None
    arguments.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return PatternMask(
        torch.Size((batch_size, 1, q_length, kv_length)),
        band,
        used_keys,
        _padding(attention_mask, kv_offset, used_keys),
        lambda: masking_utils.sdpa_mask(**arguments),
        skipped,
    )


_ANY_KEY: dict[str, Any] = {
    "mask_function": lambda batch, head, query, key: query[:, :, :1] >= 0,
    "use_vmap": False,
}


def plain_band(mask_function: Callable[..., Any]) -> Band | None:
    """The band that one of transformers' own mask functions describes; None for any other."""
    if mask_function is masking_utils.causal_mask_function:
        return Band(UNBOUNDED, 0)
    if mask_function is masking_utils.bidirectional_mask_function:
        return Band(UNBOUNDED, UNBOUNDED)
    code = getattr(mask_function, "__code__", None)
    if code is _CAUSAL_WINDOW:
        # Allows window keys, the query's own included.
        window = _captured(mask_function, "sliding_window")
        return Band(window - 1, UNBOUNDED) if isinstance(window, int) and window > 0 else None
    if code is _BIDIRECTIONAL_WINDOW:
        window = _captured(mask_function, "sliding_window")
        return Band(window, window) if isinstance(window, int) and window >= 0 else None
    if code is _AND:
        parts = [plain_band(part) for part in _captured(mask_function, "mask_functions") or ()]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        return Band(_tighter([b.left for b in known]), _tighter([b.right for b in known]))
    return None


def _code(function: Callable[..., Any]) -> Any:
    return getattr(function, "__code__", None)


# transformers builds these as closures: two of one kind share their code, not their identity.
_CAUSAL_WINDOW = _code(masking_utils.sliding_window_overlay(1))
_BIDIRECTIONAL_WINDOW = _code(masking_utils.sliding_window_bidirectional_overlay(1))
_AND = _code(masking_utils.and_masks(masking_utils.causal_mask_function))


def _captured(function: Callable[..., Any], name: str) -> Any:
    if torch.compiler.is_compiling():
        return None  # a compiler can't read closures: the full mask, then
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return cells[name].cell_contents if name in cells else None


def _tighter(bounds: list[int]) -> int:
    return min((bound for bound in bounds if bound != UNBOUNDED), default=UNBOUNDED)


def _used_keys(band: Band, queries: int, keys: int, offset: int) -> int | None:
    """Number of leading keys to which the band is aligned lower right; None if there is none.

    `offset` is the first query's position minus the first key's.
    """
    if band == Band(UNBOUNDED, UNBOUNDED):
        return keys
    aligned = offset + queries  # with this many keys the last query stands at the last key
    if aligned == keys or (band.right == 0 and 0 < aligned < keys):
        return aligned
    return None


def _padding(mask: torch.Tensor | None, kv_offset: int, used_keys: int) -> torch.Tensor | None:
    if mask is None:
        return None
    mask = mask[:, kv_offset : kv_offset + used_keys].to(torch.bool)
    # As in transformers, positions that the mask doesn't reach are padding.
    if (missing := used_keys - mask.shape[1]) > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    # A compiler can't read the mask's values.
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask
