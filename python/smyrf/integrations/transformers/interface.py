"""Which models' layers look their attention function up by transformers' attention interface.

Other models compute attention themselves. Loaded with "smyrf", they would take smyrf's masks for
masks of another kind.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, masking_utils

NAME = "smyrf"


def dispatches(kind: type[nn.Module]) -> bool:
    """Whether a module's forward looks its attention function up by `_attn_implementation`."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def model_file(config: PreTrainedConfig) -> str:
    """The module that defines a config's models."""
    return type(config).__module__.replace(".configuration_", ".modeling_")


def refuse_config(config: PreTrainedConfig | None) -> None:
    """Raise where a model that computes attention itself asks for a mask.

    Raises:
        ValueError: no attention module of the model's file dispatches.
    """
    if config is not None and computes_itself(model_file(config)):
        raise ValueError(_sentence(f"the model of this {type(config).__name__}"))


def watch_loading() -> None:
    """Have transformers refuse "smyrf" where a model is made, as it refuses "sdpa".

    Transformers accepts a registered implementation for every model. A model that can't use it
    would fail when it runs, or give wrong results. No other place can refuse it before.
    """
    original = PreTrainedModel.get_correct_attn_implementation
    if getattr(original, "watches", None) == NAME:
        return  # imported again

    @functools.wraps(original)
    def checked(self: PreTrainedModel, requested: str | None, *args: Any, **kwargs: Any) -> str:
        found: str = original(self, requested, *args, **kwargs)
        kind = type(self)
        if found == NAME and computes_itself(kind.__module__):
            raise ValueError(_sentence(kind.__name__))
        if found == NAME and _has_table_without_smyrf(kind.__module__):
            raise ValueError(
                f"{kind.__name__} chooses its layers by implementation and knows no "
                f"attn_implementation={NAME!r}; load it without, and smyrf.transformers.enable "
                "switches those that can be"
            )
        # The config holds nothing but the name "smyrf": something else must bring the import along
        # when the model is pickled.
        if found == NAME:
            vars(self)[_IMPORT] = _Import()
        else:
            vars(self).pop(_IMPORT, None)
        return found

    checked.watches = NAME  # type: ignore[attr-defined]
    PreTrainedModel.get_correct_attn_implementation = checked


_IMPORT = "_smyrf_import"  # an attribute of models that were loaded with "smyrf"


class _Import:
    """A pickle of this names a function here: the import registers the name "smyrf"."""

    def __reduce__(self) -> Any:
        return _imported, ()


def _imported() -> _Import:
    return _Import()


@functools.cache
def computes_itself(file: str) -> bool:
    """Whether the models in a file compute attention themselves, by transformers' masks."""
    names = vars(sys.modules[file]) if file in sys.modules else {}
    kinds = [x for x in names.values() if isinstance(x, type) and issubclass(x, nn.Module)]
    return (
        any(kind.__module__ == file and "Attention" in kind.__name__ for kind in kinds)
        and not any(dispatches(kind) for kind in kinds)
        and any(getattr(masking_utils, name, None) is names[name] for name in _MASKS & set(names))
    )


_MASKS = {name for name in dir(masking_utils) if name.startswith("create_")}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def supports_sdpa(file: str) -> bool:
    """Whether models in a file may be loaded with `sdpa`, so that their layers know its masks."""
    return _supports_sdpa(file)  # a function of its own: compilers warn of a cache that they see


@functools.cache
def _supports_sdpa(file: str) -> bool:
    names = vars(sys.modules[file]) if file in sys.modules else {}
    kinds = [x for x in names.values() if isinstance(x, type) and issubclass(x, PreTrainedModel)]
    own = [kind for kind in kinds if kind.__module__ == file]
    return not own or any(getattr(kind, "_supports_sdpa", False) for kind in own)


@functools.cache
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def works_out_causality(forward: Callable[..., Any]) -> bool:
    """Whether a layer's forward works out `is_causal` itself, for where it gets no mask."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and "is_causal" in code.co_varnames


def _has_table_without_smyrf(file: str) -> bool:
    """Whether a file has a table of layer classes by implementation, which doesn't name smyrf."""
    names = vars(sys.modules[file]) if file in sys.modules else {}
    tables = [table for name, table in names.items() if name.endswith("_ATTENTION_CLASSES")]
    return any(isinstance(table, dict) and NAME not in table for table in tables)


def _sentence(what: str) -> str:
    return (
        f"{what}: its layers compute attention themselves, not by transformers' attention "
        "interface, so smyrf can't be switched on in it; load it with attn_implementation='eager'"
    )
