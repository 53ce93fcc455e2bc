"""Where NaN or infinity begins: the first layer whose output is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn


class FiniteWatch:
    """Looks at what every module of a model puts out, while the context lasts.

    It costs a pass over each output, so nothing is timed under it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._first: str | None = None
        self._whole = False  # whether the whole model's output was not finite

    def __enter__(self) -> FiniteWatch:
        self._hooks = ExitStack()
        for name, module in self.model.named_modules():

            def look(module: nn.Module, arguments: Any, out: Any, name: str = name) -> None:
                # A module ends after its parts: the first one found is the innermost.
                if (self._first is None or name == "") and not is_finite(out):
                    self._first = name if self._first is None else self._first
                    self._whole |= name == ""

            self._hooks.callback(module.register_forward_hook(look).remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def begins(self, answers: Any = None) -> str | None:
        """The layer where what is not finite begins, if the model's output or an answer has any.

        None where both are finite: a model may pass over an infinity inside it.
        """
        if not self._whole and is_finite(answers):
            return None
        return self._first or "the model's last"


def is_finite(value: Any) -> bool:
    """Whether no tensor or array in it holds NaN or infinity, however deep it is nested."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return True
        # A sum is quicker. It may overflow though every number is finite.
        return bool(value.sum().isfinite()) or bool(value.isfinite().all())
    if isinstance(value, np.ndarray):
        return bool(np.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(is_finite, value))
    return True
