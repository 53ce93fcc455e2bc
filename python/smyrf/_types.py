"""The types in the signatures of smyrf's functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch  # `Array` names it in a string: torch may not be installed
    from numpy.typing import NDArray

Method = Literal["auto", "dense", "lsh", "tree"]
"""How attention is computed; `smyrf.attention` says what each method does."""

Precision = Literal["auto", "float32", "int16", "int8"]
"""What the products of evaluated pairs are computed in; `smyrf.attention` says more."""

Layout = Literal["BHND", "BNHD"]
"""The order of dimensions of query, key, value and out: batch, heads, rows (N) and D, or batch,
rows, heads and D."""

Array = TypeVar("Array", "NDArray[Any]", "torch.Tensor")
"""A NumPy array or a PyTorch tensor. All arrays of one call are of the same kind."""
