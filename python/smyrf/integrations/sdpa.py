"""`replace_sdpa`: for models that call PyTorch's `scaled_dot_product_attention` themselves."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

import smyrf
from smyrf._dials import check_dials
from smyrf._types import Method

_NAME = "scaled_dot_product_attention"
_ORIGINAL = torch.nn.functional.scaled_dot_product_attention
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_lock = threading.RLock()
# The last one decides. Each change makes a new tuple, so that calls can read it without the lock.
_active: tuple[Replacement, ...] = ()
_patched: list[tuple[ModuleType, str]] = []
_fastpath = True


class Replacement:
    """What `replace_sdpa` returns; in place until `undo()`, or the end of a `with` block.

    Attributes:
        method, dials: as given to `replace_sdpa`.
        taken: calls that smyrf computed.
        passed: calls that PyTorch computed, counted by reason.
    """

    def __init__(self, method: Method, dials: dict[str, Any]) -> None:
        check_dials(method, dials)
        self.method = method
        self.dials = dials
        self.taken = 0
        self.passed: Counter[str] = Counter()

    def undo(self) -> None:
        """Take this replacement away; one that was made before or after it stays. Idempotent."""
        global _active
        with _lock:
            _active = tuple(one for one in _active if one is not self)
            if not _active:
                _restore()

    def __enter__(self) -> Replacement:
        _add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        dials = "".join(f", {name}={value!r}" for name, value in self.dials.items())
        state = "in place" if self in _active else "undone"
        return (
            f"<smyrf.torch.replace_sdpa(method={self.method!r}{dials}): {state}, {self.taken} "
            f"taken, {self.passed.total()} passed>"
        )

    def _count(self, reason: str | None) -> None:
        with _lock:
            if reason is None:
                self.taken += 1
            else:
                self.passed[reason] += 1


def replace_sdpa(method: Method = "auto", **dials: float | None) -> Replacement:
    """Have `torch.nn.functional.scaled_dot_product_attention` compute with smyrf.

    For models that call it themselves: timm, diffusers, `torch.nn.MultiheadAttention` without
    `need_weights`, `torch.nn.TransformerEncoder`. Arguments keep PyTorch's meaning: by `is_causal`
    query 0 stands at key 0. A call that smyrf can't take goes to PyTorch's own function and is
    counted with the reason. Such calls have dropout, masks that require a gradient, float64,
    another device, subclasses of tensors or transforms of torch.func; with "lsh" and "tree" also
    masks or `is_causal`.

    The replacement is in place from this call on, in every thread, until `undo()` or the end of the
    `with` block. Replacements nest: the last one in place decides, and counts. Names that modules
    bound by `from torch.nn.functional import ...` are replaced too; those in classes, closures and
    graphs that were compiled before are not. The fused path of PyTorch's `MultiheadAttention` and
    `TransformerEncoder` calls no attention function, so it is off meanwhile (`torch.backends.mha`).
    Calls inside compiled graphs are not counted.

    Args:
        method: as in `smyrf.attention`, default "auto".
        dials: n_hashes, cluster_size, tolerance, max_density, seed: as in `smyrf.attention`, each
            of its own method.

    Returns:
        Replacement, a context manager with `undo()`, `taken` and `passed`.

    Raises:
        TypeError: an unknown dial, or one of the wrong type.
        ValueError: an unknown method; a dial out of range, or of another method.
    """
    replacement = Replacement(method, dials)
    _add(replacement)
    return replacement


def _add(replacement: Replacement) -> None:
    global _active
    with _lock:
        if not _active:
            _patch()
        if replacement not in _active:
            _active = (*_active, replacement)


def _patch() -> None:
    global _fastpath
    for name, module in list(sys.modules.items()):
        if module is None or (name.startswith("torch.") and module is not torch.nn.functional):
            continue
        if name == __name__ or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if value is _ORIGINAL:
                setattr(module, attribute, scaled_dot_product_attention)
                _patched.append((module, attribute))
    _fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)


def _restore() -> None:
    for module, attribute in _patched:
        if vars(module).get(attribute) is scaled_dot_product_attention:
            setattr(module, attribute, _ORIGINAL)
    if _patched:
        torch.backends.mha.set_fastpath_enabled(_fastpath)
    _patched.clear()


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stands for PyTorch's function of this name while a replacement is in place."""
    active = _active
    reason: str | None = None
    if active and type(attn_mask).__name__ == "CausalBias":  # importing it takes seconds
        # A CausalBias turns itself into a plain mask, and calls PyTorch's function with that. It
        # does so only for a function that it takes for PyTorch's.
        out: Tensor = handle_torch_function(
            scaled_dot_product_attention,
            (attn_mask,),
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        return out
    if active:
        replacement = active[-1]
        arguments = (query, key, value, attn_mask)
        reason = _why_not(replacement.method, arguments, dropout_p, is_causal)
        if reason is None and torch.compiler.is_compiling():
            return _attend(replacement, arguments, is_causal, scale, enable_gqa)
        if reason is None:
            try:
                out = _attend(replacement, arguments, is_causal, scale, enable_gqa)
            except (TypeError, ValueError, NotImplementedError) as refusal:
                reason = str(refusal)
        if not torch.compiler.is_compiling():
            replacement._count(reason)
        if reason is None:
            return out
    return _ORIGINAL(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _why_not(
    method: Method, arguments: tuple[Any, ...], dropout_p: float, is_causal: bool
) -> str | None:
    """Why PyTorch has to compute a call. None: smyrf may try; it can still refuse the call."""
    query, key, value, attn_mask = arguments
    given = [x for x in arguments if x is not None]
    for tensor in given:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"a {type(tensor).__name__}"
        if tensor.device.type != "cpu":
            return f"device {tensor.device.type}"
    for tensor in (query, key, value):
        if tensor.dtype not in _DTYPES:
            return f"dtype {tensor.dtype}".replace("torch.", "")
    if dropout_p != 0.0:
        return "dropout_p"
    if is_causal and attn_mask is not None:
        return "is_causal with attn_mask"
    if method in ("lsh", "tree") and (is_causal or attn_mask is not None):
        return f"{'is_causal' if is_causal else 'attn_mask'} with method {method}"
    if attn_mask is not None:
        if attn_mask.ndim < 2:
            return "attn_mask of fewer than 2 dimensions"
        if attn_mask.requires_grad and torch.is_grad_enabled():
            return "attn_mask requires a gradient"
        if attn_mask.dtype != torch.bool and attn_mask.dtype not in _DTYPES:
            return f"attn_mask of dtype {attn_mask.dtype}".replace("torch.", "")
    if torch.compiler.is_compiling():
        return None
    if torch._C._is_tracing():
        return "torch.jit.trace"
    return "torch.func" if torch._C._are_functorch_transforms_active() else None


def _attend(
    replacement: Replacement,
    arguments: tuple[Any, ...],
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    query, key, value, attn_mask = arguments
    window = None
    if is_causal:
        queries, keys = query.shape[-2], key.shape[-2]
        if queries > keys:
            # PyTorch counts from the upper left, smyrf from the lower right.
            window, is_causal = (-1, queries - keys), False
        elif queries < keys:  # no query sees the last keys
            key, value = key[..., :queries, :], value[..., :queries, :]
    out: Tensor = smyrf.attention(
        query,
        key,
        value,
        attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        method=replacement.method,
        window=window,
        **replacement.dials,
    )
    return out
