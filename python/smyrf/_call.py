"""What calls with NumPy arrays and with PyTorch tensors share."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_tensor(array: Any) -> bool:
    """Whether `array` is a PyTorch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def detached(array: Any) -> Any:
    """A tensor outside the autograd graph, or the array as it is."""
    return array.detach() if is_tensor(array) else array


def check_dropout(dropout_p: float) -> None:
    if dropout_p != 0.0:
        raise NotImplementedError(
            f"dropout_p: got {dropout_p!r}, only 0 is supported; put the model into eval mode or "
            "set its attention dropout to 0"
        )


def check_arrays(kind: type, **arrays: Any) -> None:
    """Raise unless every array that is given is of one kind."""
    expected = "a NumPy array" if kind is np.ndarray else "a PyTorch tensor"
    like = " like query" if kind is not np.ndarray else ""
    for name, array in arrays.items():
        if array is not None and not isinstance(array, kind):
            got = type(array).__name__
            hint = " or a PyTorch tensor" if name == "query" else like
            raise TypeError(f"{name}: got {got}, expected {expected}{hint}")


def output_shape(query: Any, value: Any) -> tuple[int, ...]:
    """The shape of out in the layout of the inputs; of other ranks than 4 the core complains."""
    if query.ndim != 4 or value.ndim != 4:
        return (0,)
    return (*query.shape[:3], value.shape[3])


def lse_shape(query: Any, layout: str) -> tuple[int, ...]:
    """(B, Hq, Nq), whatever the layout."""
    if query.ndim != 4:
        return (0,)
    batch, first, second, _ = query.shape
    return (batch, second, first) if layout == "BNHD" else (batch, first, second)


def pack(out: Any, lse: Any, statistics: Any) -> Any:
    """out, or a tuple of what there is."""
    results = tuple(result for result in (out, lse, statistics) if result is not None)
    return results if len(results) > 1 else out
