"""The mask function of `smyrf.transformers`. A plain pattern stays one, and takes O(N) memory.

transformers describes a mask by a function of absolute positions and a padding mask (batch, keys).
Where the function is plainly causal, bidirectional or a sliding window, layers get a `PatternMask`.
Otherwise they get transformers' own full boolean mask, as a `BoolMask`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import masking_utils
from transformers.masking_utils import sliding_window_bidirectional_overlay  # since 5.4

from smyrf.integrations.transformers.interface import model_file, refuse_config, supports_sdpa

UNBOUNDED = -1


class Band(NamedTuple):
    """A query sees keys from `left` positions before it to `right` after it. -1: no bound."""

    left: int
    right: int


class BoolMask(torch.Tensor):
    """A boolean mask (True takes part) that can't be added to scores.

    A layer that computes attention itself, without transformers' attention interface, adds its mask
    to floating scores. With a boolean mask, or one of zeros and ones, nothing would show that the
    result is wrong. So that addition raises ValueError. For all else this is a boolean tensor.
    Boolean tensors made from it are such masks too, and so are its casts to a floating dtype.
    """

    origin: PatternMask | None = None  # whose memory this mask may share
    filled = False  # a cast that others wrote to, e.g. the lowest float: it may be added to scores

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        name = _name(function)
        if name.strip("_") in _ADDITIONS:
            _refuse_scores(name.strip("_"), *given)
        writes = name in _WRITES or (name.endswith("_") and not name.endswith("__"))
        written = (args[:1] if writes else ()), given[1].get("out")
        for origin in _origins(written):
            origin.written = True
        for mask in _masks(written):
            mask.filled = True
        if name != "__deepcopy__" and all(issubclass(kind, BoolMask) for kind in types):
            args, kwargs = tree_map_only(PatternMask, _readable, given)
            with torch._C.DisableTorchFunctionSubclass():
                result = function(*args, **kwargs)
        else:  # another subclass takes part, and decides
            args, kwargs = tree_map_only(BoolMask, _full, given)
            result = function(*args, **kwargs)
        # To make a mask of a tensor's `_base`, PyTorch asks that for its `_base`, and so on without
        # end. A size holds no tensors.
        if name in ("tolist", "_base.__get__") or isinstance(result, torch.Size):
            return result
        origins = _origins(given)
        cast = name in _CASTS and not (torch.compiler.is_compiling() or _filled(given))
        return tree_map_only(torch.Tensor, lambda x: _guarded(x, origins, cast), result)

    def full(self) -> torch.Tensor:
        """The mask as a plain tensor, in the same memory."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach()  # compilers don't take as_subclass(torch.Tensor)


class PatternMask(BoolMask):
    """A full mask (batch, 1, queries, keys) that is known to be a band and padding.

    smyrf's layers read `band`, `used_keys` and `padding`. Any other code sees the full mask.
    Outside graphs the full mask is made when it is first needed, and takes O(queries keys) memory.
    Until then the tensor lies on the meta device, where nobody can read it by accident.

    Attributes:
        band: the keys that a query sees. The last query stands at key `used_keys - 1`.
        used_keys: how many leading keys there are to use. Later ones, a static cache's unused rows,
            are in the future of every query.
        padding: (batch, used_keys) bool, True = valid, or None where nothing is padded.
        texts: for each row of the batch, where its texts begin and where the last one ends. A query
            sees keys of its own text alone, and the band counts inside that text. None: a row is
            one text.
        none_in_sdpa: transformers' `sdpa` gives layers no mask here. They then follow their own
            `is_causal`, whatever the band.
        device_of_full: the device of the full mask.
    """

    band: Band
    used_keys: int
    padding: torch.Tensor | None
    texts: list[list[int]] | None
    none_in_sdpa: bool
    device_of_full: torch.device
    make: Callable[[], torch.Tensor] | None = None  # None: the tensor itself is the full mask
    made: torch.Tensor | None = None  # by `make`
    written = True  # others may have written to it; False for a new mask of `smyrf_mask`

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        mask = args[0] if args else None
        if isinstance(mask, PatternMask) and mask.make is not None:
            name = _name(function)
            if name in _SIZES:
                with torch._C.DisableTorchFunctionSubclass():
                    return function(*args, **(kwargs or {}))
            small = torch.empty(0, dtype=torch.bool, device=mask.device_of_full)
            if name in _PLACES:
                return function(small)
            if name in _MOVES:
                moved = function(small, *args[1:], **(kwargs or {}))
                if moved.dtype == small.dtype and moved.device == small.device:
                    return mask  # there is nothing to do: tensors return themselves, too
        return super().__torch_function__(function, types, args, kwargs)

    def full(self) -> torch.Tensor:
        if self.make is None:
            return super().full()
        if self.made is None:
            self.made = self.make()
        return self.made


def smyrf_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """The mask function registered with transformers under the name "smyrf".

    Args:
        batch_size, q_length, kv_length: sizes of the full mask.
        q_offset, kv_offset: positions of the first query and of the first key, default 0.
        mask_function: transformers' description of the pattern, in positions. Default: causal.
        attention_mask: (batch, positions) bool, True = valid; default: nothing is padded. A
            `PatternMask` is returned as it is (`generate` prepares masks before it calls the
            model).
        kwargs: passed on to transformers' `sdpa_mask`, but for what lets that return None in place
            of a mask: a layer that computes attention itself would take None for "every key may be
            seen".

    Returns:
        (batch_size, 1, q_length, kv_length) bool, True takes part: a `PatternMask` where the
        pattern is plain, otherwise a `BoolMask` (a plain tensor in compiled graphs).

    Raises:
        ValueError: the model computes attention itself.
    """
    if isinstance(attention_mask, PatternMask):
        return attention_mask
    if not torch.compiler.is_compiling():
        refuse_config(kwargs.get("config"))
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

    def make() -> torch.Tensor:
        full: torch.Tensor = masking_utils.sdpa_mask(**{**arguments, **_NEVER_NONE})
        return full.contiguous()  # expanded memory can't be written to

    in_graph = _in_graph(attention_mask, q_offset)
    pattern, texts = (mask_function, None) if in_graph else _unpacked(mask_function)
    band = plain_band(pattern)
    flat = attention_mask is None or attention_mask.ndim == 2
    used_keys = None
    # A static cache counts its rows in a tensor, which graphs can't read.
    if band is not None and flat and not (in_graph and isinstance(q_offset, torch.Tensor)):
        used_keys = _used_keys(band, q_length, kv_length, int(q_offset) - kv_offset)
    if in_graph or band is None or used_keys is None:
        full = make()
        if type(full) is not torch.Tensor:
            return full  # a fake tensor, which can't be made another type
        if band is None or used_keys is None:
            # Compiled graphs take no subclasses as inputs. Masks of static caches, whose offset is
            # a tensor, are such inputs.
            guarded = not (torch.compiler.is_compiling() or isinstance(q_offset, torch.Tensor))
            return full.as_subclass(BoolMask) if guarded else full
        mask = full.as_subclass(PatternMask)  # what nobody reads is removed from the graph
        mask.make = None  # a compiler doesn't see the class's attribute
    else:
        shape = (batch_size, 1, q_length, kv_length)
        mask = torch.empty(shape, dtype=torch.bool, device="meta").as_subclass(PatternMask)
        mask.make = make
        mask.device_of_full = torch.device(kwargs.get("device", "cpu"))
    mask.band, mask.used_keys, mask.texts, mask.written = band, used_keys, texts, False
    mask.padding = _padding(attention_mask, kv_offset, used_keys, read=not in_graph)
    # transformers decides by sizes and padding. It is asked with a pattern that hides nothing and
    # broadcasts over keys, so that it builds nothing large.
    config = kwargs.get("config")
    mask.none_in_sdpa = (
        config is None or supports_sdpa(model_file(config))
    ) and masking_utils.sdpa_mask(**{**arguments, **_ANY_KEY}) is None
    return mask


_NEVER_NONE = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
_ANY_KEY: dict[str, Any] = {
    "mask_function": lambda batch, head, query, key: query[:, :, :1] >= 0,
    "use_vmap": False,
}


def as_layers_see(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A layer's mask: None, a `PatternMask` that nobody wrote to, or a plain tensor."""
    if isinstance(mask, PatternMask) and not mask.written:
        return mask
    return mask.full() if isinstance(mask, BoolMask) else mask


def is_traced() -> bool:
    """Whether `torch.jit.trace` runs. Sizes are tensors then, and what they decide is kept."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced


def _in_graph(*given: Any) -> bool:
    """Whether a graph is being made, so that no value may decide what is computed."""
    if torch.compiler.is_compiling() or is_traced():
        return True
    probe = torch.empty(0, device="meta")  # of another class while FakeTensorMode is on
    known = (torch.Tensor, torch.nn.Parameter, BoolMask, PatternMask)
    tensors = [x for x in (probe, *given) if isinstance(x, torch.Tensor)]
    return any(type(x) not in known for x in tensors) or any(x.is_meta for x in tensors[1:])


def _full(mask: BoolMask) -> torch.Tensor:
    return mask.full()  # `full` of the mask's own class


def _readable(mask: PatternMask) -> torch.Tensor:
    """A tensor that has the mask's elements in memory."""
    return mask if mask.make is None else mask.full()


def _guarded(result: torch.Tensor, origins: list[PatternMask], cast: bool) -> torch.Tensor:
    """A result as a `BoolMask`, where it is boolean or the cast of a mask."""
    kept = result.dtype == torch.bool or (cast and result.is_floating_point())
    if not kept or isinstance(result, BoolMask):
        return result
    mask = result.as_subclass(BoolMask)
    mask.origin = origins[0] if origins else None
    return mask


def _masks(given: Any) -> list[BoolMask]:
    """The masks among arguments, at any depth."""
    return [x for x in tree_leaves(given) if isinstance(x, BoolMask)]


def _filled(given: Any) -> bool:
    """Whether a cast that others wrote to is among arguments."""
    return any(x.filled and x.is_floating_point() for x in _masks(given))


def _origins(given: Any) -> list[PatternMask]:
    """The patterns whose memory arguments may share."""
    found = [x if isinstance(x, PatternMask) else x.origin for x in _masks(given)]
    return [x for x in found if x is not None]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _name(function: Any) -> str:
    """A function's name, e.g. "add", "add_", "__setitem__"; of a property "shape.__get__"."""
    name: str = getattr(function, "__name__", "").partition(".")[0]
    if name in ("__get__", "__set__"):
        return f"{function.__self__.__name__}.{name}"
    return name


def _refuse_scores(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise where a mask is added to a floating tensor, or a product is added to a mask."""
    added: Any = (args, kwargs)
    if name not in _SUMS:
        added = args[0] if args else kwargs.get("input")
    masks = [x for x in _masks(added) if not _filled(x)]
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    scores = [x for x in given if x.is_floating_point() or x.is_complex()]
    # Many models compute 1 - mask with a cast mask, where the 1 may be a tensor.
    casts = all(x.is_floating_point() for x in masks)
    if masks and any(not (isinstance(x, BoolMask) or (casts and x.ndim == 0)) for x in scores):
        raise ValueError(
            f"{_caller()} adds smyrf's boolean mask (True takes part) to floating scores: it "
            "computes attention itself, not by transformers' attention interface, so smyrf can't "
            "be switched on in this model; load it with attn_implementation='eager' (a model that "
            "was enabled: call smyrf.transformers.disable(model))"
        )


def _caller() -> str:
    """The class of the module that calls, for messages."""
    if not torch.compiler.is_compiling():
        frame = inspect.currentframe()
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, torch.nn.Module):
                return type(module).__name__
            frame = frame.f_back
    return "attention_mask: the model"


# Names of functions without their underscores: those that add two arguments, and with them those
# that add a product to their first argument.
_SUMS = frozenset(
    {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "foreach_add", "foreach_sub"}
)
_ADDITIONS = _SUMS | {
    "addbmm",
    "addcdiv",
    "addcmul",
    "addmm",
    "addmv",
    "addr",
    "baddbmm",
}

# Names of functions that cast a mask, or only view or copy one that was cast.
_CASTS = {"to", "type", "type_as", "float", "half", "bfloat16", "double"} | {
    "__getitem__",
    "contiguous",
    "expand",
    "expand_as",
    "squeeze",
    "unsqueeze",
    "view",
    "reshape",
}

# Names of functions that write to an argument, or hand out its memory to write to. All others whose
# names end in one underscore write, too.
_WRITES = {name for name in dir(torch.Tensor) if name.startswith("__i")} - {
    "__index__",
    "__init__",
    "__init_subclass__",
    "__int__",
    "__invert__",
    "__iter__",
} | {"__setitem__", "data.__set__", "numpy", "__array__", "untyped_storage", "data_ptr"}

# Names of functions that need no full mask, though the mask lies on the meta device. _SIZES: the
# mask's own answer is right. _PLACES: they ask where the full mask lies. _MOVES: they give the mask
# itself, where the full mask has that dtype and device already.
_SIZES = frozenset(
    f"{name}.__get__" for name in ("shape", "dtype", "ndim", "layout", "requires_grad", "is_leaf")
) | {
    "__len__",
    "dim",
    "element_size",
    "is_complex",
    "is_floating_point",
    "ndimension",
    "nelement",
    "numel",
    "requires_grad.__set__",
    "size",
}
_PLACES = {"device.__get__", "get_device", "is_cpu.__get__", "is_cuda.__get__", "is_meta.__get__"}
_MOVES = {"bool", "contiguous", "cpu", "detach", "to"}


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
_BIDIRECTIONAL_WINDOW = _code(sliding_window_bidirectional_overlay(1))
_AND = _code(masking_utils.and_masks(masking_utils.causal_mask_function))
_PACKED = _code(masking_utils.packed_sequence_mask_function(torch.zeros(1, 1)))
_REMAPPED = _code(
    masking_utils.remap_positions_for_packed_sequence(
        masking_utils.causal_mask_function, torch.zeros(1, 1)
    )
)


def _captured(function: Callable[..., Any], name: str) -> Any:
    """What a closure holds under a name; None where it holds nothing of that name."""
    if torch.compiler.is_compiling():
        return None  # a compiler can't read closures, so that the full mask is made
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return cells[name].cell_contents if name in cells else None


def _unpacked(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[list[int]] | None]:
    """A mask function of packed rows as the pattern inside a text, and where the texts begin.

    transformers packs rows whose position ids begin anew. Inside a text they count up by one, so a
    band in positions is the same band in indices. Other functions are returned as they are, with
    None.
    """
    if _code(function) is not _AND:
        return function, None
    parts = _captured(function, "mask_functions")
    if [_code(part) for part in parts] != [_PACKED, _REMAPPED]:
        return function, None
    numbers = _captured(parts[0], "packed_sequence_mask")
    length = numbers.shape[1]
    begins = [(row.diff().nonzero().flatten() + 1).tolist() for row in numbers]
    return _captured(parts[1], "mask_function"), [[0, *cuts, length] for cuts in begins]


def _tighter(bounds: list[int]) -> int:
    """The smallest bound, where UNBOUNDED is larger than any."""
    return min((bound for bound in bounds if bound != UNBOUNDED), default=UNBOUNDED)


def _used_keys(band: Band, queries: int, keys: int, offset: int) -> int | None:
    """How many leading keys there are if the last query stands at the last of them.

    `offset` is the first query's position minus the first key's. None: no number of leading keys
    gives the same mask.
    """
    if band == Band(UNBOUNDED, UNBOUNDED):
        return keys
    aligned = offset + queries  # with this many keys the last query stands at the last key
    if aligned == keys or (band.right == 0 and 0 < aligned < keys):
        return aligned
    return None


def _padding(
    mask: torch.Tensor | None, kv_offset: int, used_keys: int, *, read: bool
) -> torch.Tensor | None:
    """(batch, used_keys) bool, True = valid. With `read`, None where its values pad nothing."""
    if mask is None:
        return None
    mask = mask[:, kv_offset : kv_offset + used_keys].to(torch.bool)
    # As in transformers, positions that the mask doesn't reach are padding.
    if (missing := used_keys - mask.shape[1]) > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    if read and bool(mask.all()):
        return None
    return mask
