"""What calls with NumPy arrays and with PyTorch tensors share."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from smyrf._types import Layout

# query, key and value of a call: NumPy arrays or PyTorch tensors.
Inputs = tuple[Any, Any, Any]


def is_tensor(array: Any) -> bool:
    """Whether `array` is a PyTorch tensor; never imports torch."""
    # Another thread may be importing it, so that it is there without its classes.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(array, tensor)


def detached(array: Any) -> Any:
    """A tensor without its autograd graph, and with its signs in memory; an array as it is."""
    if not is_tensor(array):
        return array
    # DLPack does not carry PyTorch's mark "negate when read".
    return array.detach().resolve_neg() if array.is_neg() else array.detach()


def like(array: Any, mask: Any) -> Any:
    """A mask, given as a NumPy array, as an array of the kind of `array`."""
    return sys.modules["torch"].from_numpy(mask) if is_tensor(array) else mask


def check_arrays(
    kind: type, required: tuple[str, ...] = ("query", "key", "value"), **arrays: Any
) -> None:
    """Raise TypeError unless each array is of this kind; those not required may be None."""
    for name, array in arrays.items():
        if array is None and name not in required:
            continue
        if not isinstance(array, kind):
            expected = "a NumPy array" if kind is np.ndarray else "a PyTorch tensor"
            first = required[0]
            hint = " or a PyTorch tensor" if name == first else f" like {first}"
            raise TypeError(f"{name}: got {type(array).__name__}, expected {expected}{hint}")
        if kind is not np.ndarray:
            if array.is_nested:  # type: ignore[attr-defined]  # it has no shape to look at
                raise TypeError(
                    f"{name}: got a nested tensor, expected a padded one; call "
                    ".to_padded_tensor(0.0) and pass key_padding_mask and query_padding_mask"
                )
            if array.layout is not sys.modules["torch"].strided:  # type: ignore[attr-defined]
                raise TypeError(
                    f"{name}: got a {array.layout} tensor on "  # type: ignore[attr-defined]
                    f"{array.device}, expected a strided one on the CPU; "  # type: ignore[attr-defined]
                    "call .cpu() or .to_dense()"
                )
        elif isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                f"{name}: got a masked array, whose mask would be ignored; pass its data, and "
                "key_padding_mask or attn_mask for what takes no part"
            )


_PYTHONS = frozenset((type(None), bool, int, float, str))


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options with Python's numbers in place of NumPy's, which PyTorch's operators refuse."""
    if _PYTHONS.issuperset(map(type, options.values())):  # nearly always
        return options

    def converted(option: Any) -> Any:
        is_scalar = isinstance(option, (np.generic, np.ndarray)) and option.ndim == 0
        return option.item() if is_scalar else option

    def pair(option: Any) -> Any:
        is_array = isinstance(option, np.ndarray) and option.ndim == 1
        is_pair = is_array or isinstance(option, (tuple, list))
        return tuple(map(converted, option)) if is_pair else converted(option)

    pairs = {name: pair(options[name]) for name in ("window", "positions")}
    return {name: converted(option) for name, option in options.items()} | pairs


# The tensors among the options.
MASKS = ("attn_mask", "key_padding_mask", "query_padding_mask")

# What `merge` takes.
PARTS = ("out", "lse", "other_out", "other_lse")


def output_shape(query: Any, value: Any) -> tuple[int, ...]:
    """The shape of out, in the layout of the inputs. (0,) where the core will refuse the rank."""
    if query.ndim != 4 or value.ndim != 4:
        return (0,)
    return (*query.shape[:3], value.shape[3])


def lse_shape(query: Any, layout: Layout) -> tuple[int, ...]:
    """(B, Hq, Nq), whatever the layout. (0,) where the core will refuse the rank."""
    if query.ndim != 4:
        return (0,)
    batch, first, second, _ = query.shape
    return (batch, second, first) if layout == "BNHD" else (batch, first, second)


def pack(out: Any, lse: Any, statistics: Any) -> Any:
    """out alone, or a tuple of those of the three that are not None."""
    if lse is None and statistics is None:
        return out
    results = tuple(result for result in (out, lse, statistics) if result is not None)
    return results if len(results) > 1 else out
