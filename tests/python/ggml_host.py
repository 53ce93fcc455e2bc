"""ggml as the wheel of xllamacpp carries it, by ctypes: single operations on a backend."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import smyrf.ggml

core = pytest.importorskip("xllamacpp.xllamacpp")

F32, F16, Q8_0, BF16 = 0, 1, 8, 30  # ggml_type
SUCCESS = 0
MEMORY = 1 << 26

_pointer, _int64, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Parameters(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@cache
def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    found = getattr(ctypes.CDLL(core.__file__), name)
    found.restype, found.argtypes = result, arguments
    return found  # type: ignore[no-any-return]


@cache
def registry() -> int:
    """The loaded plug-in's registry entry."""
    loaded = function("ggml_backend_load", _pointer, ctypes.c_char_p)(
        str(smyrf.ggml.path()).encode()
    )
    assert loaded, "the plug-in was refused; its reason is in the captured stderr"
    return loaded  # type: ignore[no-any-return]


@cache
def backend(name: str) -> int:
    """A backend: "smyrf", or ggml's own "cpu"."""
    if name == "cpu":
        made = function("ggml_backend_cpu_init", _pointer)()
    else:
        device = function("ggml_backend_reg_dev_get", _pointer, _pointer, ctypes.c_size_t)(
            registry(), 0
        )
        made = function("ggml_backend_dev_init", _pointer, _pointer, ctypes.c_char_p)(device, None)
        address("ggml_backend_set_n_threads", None, _pointer, ctypes.c_int)(made, 2)
    return made  # type: ignore[no-any-return]


def address(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function that the plug-in gives by name."""
    found = function("ggml_backend_reg_get_proc_address", _pointer, _pointer, ctypes.c_char_p)(
        registry(), name.encode()
    )
    assert found, name
    return ctypes.CFUNCTYPE(result, *arguments)(found)


@dataclass
class Attention:
    """A node GGML_OP_FLASH_ATTN_EXT.

    query (B, Hq, Nq, D), key (B, Hkv, Nk, D), value (B, Hkv, Nk, Dv), mask (1 or B, 1 or Hq, Nq,
    Nk) or None.
    """

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    mask: NDArray[Any] | None
    scale: float
    dtype: int = F16  # of key and value
    max_bias: float = 0.0
    soft_cap: float = 0.0
    sinks: NDArray[Any] | None = None

    def run(self, where: str) -> NDArray[np.float32] | None:
        """(B, Nq, Hq, Dv); None where the backend doesn't take the node."""
        context = function("ggml_init", _pointer, _Parameters)(_Parameters(MEMORY, None, False))
        try:
            node = self._build(context)
            graph = function("ggml_new_graph", _pointer, _pointer)(context)
            function("ggml_build_forward_expand", None, _pointer, _pointer)(graph, node)
            supports = function("ggml_backend_supports_op", ctypes.c_bool, _pointer, _pointer)
            if not supports(backend(where), node):
                return None
            compute = function("ggml_backend_graph_compute", ctypes.c_int, _pointer, _pointer)
            assert compute(backend(where), graph) == SUCCESS
            batch, heads, queries, _ = self.query.shape
            shape = (batch, queries, heads, self.value.shape[3])
            floats = ctypes.cast(_data(node), ctypes.POINTER(_float))
            return np.ctypeslib.as_array(floats, shape).copy()
        finally:
            function("ggml_free", None, _pointer)(context)

    def _build(self, context: int) -> int:
        query = _rows(context, self.query, F32)
        # As in a cache: the heads of a position lie together, and rows are seen through a view.
        key, value = (_permuted(context, x, self.dtype) for x in (self.key, self.value))
        mask = None if self.mask is None else _rows(context, self.mask, F16)
        make = function("ggml_flash_attn_ext", _pointer, *[_pointer] * 5, _float, _float, _float)
        node = make(context, query, key, value, mask, self.scale, self.max_bias, self.soft_cap)
        if self.sinks is not None:
            add = function("ggml_flash_attn_ext_add_sinks", None, _pointer, _pointer)
            add(node, _rows(context, self.sinks[None, None, None], F32))
        return node  # type: ignore[no-any-return]

    def truth(self) -> NDArray[np.float64]:
        """(B, Nq, Hq, Dv) in float64, from key and value as their dtype holds them."""
        group = self.query.shape[1] // self.key.shape[1]
        key, value = (
            np.repeat(_rounded(x, self.dtype).astype(np.float64), group, axis=1)
            for x in (self.key, self.value)
        )
        logits = self.query.astype(np.float32).astype(np.float64) @ key.swapaxes(2, 3) * self.scale
        if self.mask is not None:
            logits = logits + self.mask
        highest = logits.max(axis=3, keepdims=True)
        weights = np.exp(logits - np.where(np.isfinite(highest), highest, 0.0))
        total = weights.sum(axis=3, keepdims=True)
        out = (weights / np.where(total > 0.0, total, 1.0)) @ value
        return out.swapaxes(1, 2)  # type: ignore[no-any-return]


def _data(tensor: int) -> int:
    return function("ggml_get_data", _pointer, _pointer)(tensor)  # type: ignore[no-any-return]


def _rounded(array: NDArray[Any], dtype: int) -> NDArray[Any]:
    if dtype == F16:
        return array.astype(np.float16)
    if dtype == BF16:
        bits = array.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    return array.astype(np.float32)


def _rows(context: int, array: NDArray[Any], dtype: int) -> int:
    """A contiguous tensor of a (n3, n2, n1, n0) array; zeros for quantised types."""
    make = function("ggml_new_tensor_4d", _pointer, _pointer, ctypes.c_int, *[_int64] * 4)
    tensor = make(context, dtype, *reversed(array.shape))
    rounded = np.ascontiguousarray(_rounded(array, dtype))
    if dtype == BF16:
        rounded = (rounded.view(np.uint32) >> 16).astype(np.uint16)
    if dtype in (F32, F16, BF16):
        ctypes.memmove(_data(tensor), rounded.ctypes.data, rounded.nbytes)
    return tensor  # type: ignore[no-any-return]


def _permuted(context: int, array: NDArray[Any], dtype: int) -> int:
    tensor = _rows(context, np.ascontiguousarray(array.swapaxes(1, 2)), dtype)
    permute = function("ggml_permute", _pointer, _pointer, _pointer, *[ctypes.c_int] * 4)
    return permute(context, tensor, 0, 2, 1, 3)  # type: ignore[no-any-return]
