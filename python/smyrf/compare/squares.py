"""How a language model attends old text, computed beside the model.

`tree` and `lsh` take no causal mask, so they can't replace attention inside a decoder. But in a
long text half of the pairs of causal attention have no mask between them: each token of the later
half sees all of the earlier half. These squares, one a layer, are captured from the model as it
reads a text, and then attended with every method. Nothing of that flows back: the model keeps its
own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from smyrf.compare import inputs
from smyrf.compare.finite import FiniteWatch
from smyrf.compare.models import Model, check_ids
from smyrf.compare.problem import Problem
from smyrf.compare.switch import TRANSFORMERS
from smyrf.compare.task import Figure, at_least

MOST_TOKENS = 4096
TIMED_LAYERS = 6
SAMPLED = 8  # one query in so many is kept to be judged; all of them would take a gigabyte


class Square(nn.Module):
    """One layer's queries of the later tokens over its keys of the earlier ones, without a mask.

    Calls attention as a layer of transformers does, so that it can be switched, timed and
    collected like one. Rows: query (1, Hq, N, D), key and value (1, Hkv, N, D).
    """

    def __init__(
        self,
        config: Any,
        rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        scaling: float | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.rows = rows
        self.scaling = scaling
        self.num_key_value_groups = rows[0].shape[1] // rows[1].shape[1]

    def forward(self) -> torch.Tensor:
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out: torch.Tensor = attend(
            self, *self.rows, None, dropout=0.0, scaling=self.scaling, is_causal=False
        )[0]
        return out


class Squares(nn.Module):
    """The squares of all layers, first to last."""

    def __init__(self, squares: Sequence[Square]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(squares)


class AttendOldText:
    """The later half of a text attends the earlier half, in every layer of a language model."""

    whole_model = False
    ran = "on real input"
    keeps = "a mean cosine of at least 0.99, and 0.95 in all but a hundredth"
    switch = TRANSFORMERS

    def __init__(self, model: Model, text: inputs.Text) -> None:
        # No model has so many positions as a book; the warning about it is pointless here.
        ids = model.tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"]
        half = min(len(ids), MOST_TOKENS, model.module.config.max_position_embeddings) // 2
        if half == 0:
            raise Problem(f"input {text.title}: holds {len(ids)} token, expected at least 2")
        check_ids(model, max(ids[: 2 * half]))
        self.weights = model.weights
        with (
            _squares_of(model.module, half) as squares,
            FiniteWatch(model.module) as watch,
            torch.inference_mode(),
        ):
            model.module(torch.tensor([ids[: 2 * half]]), use_cache=False)
        if (layer := watch.begins()) is not None:
            raise Problem(
                f"model {model.source.name}: the output is NaN or infinite, and that begins in "
                f"layer {layer}; this is the model's own attention, so its weights or the input "
                "are at fault"
            )
        self.model = Squares(squares)
        self.quantised = model.source.gguf is not None
        query, key, _ = squares[0].rows
        self.title = (
            f"{text.title}: in each of {len(squares)} layers the queries ({query.shape[1]} heads) "
            f"of tokens {half} to {2 * half - 1} over the keys ({key.shape[1]} heads) of tokens 0 "
            f"to {half - 1}"
        )
        self.narrow([f"layers.{index}" for index in range(len(squares))])

    @property
    def about(self) -> str:
        rest = f"; timed on {self.timed} of the layers" if self.timed < self.batches else ""
        return self.title + rest

    def changeable(self, layer: str) -> bool:
        return True

    def narrow(self, layers: Sequence[str]) -> None:
        """Only these run. Those that are timed come first, evenly spread."""
        self.batches = len(layers)
        self.timed = min(self.batches, TIMED_LAYERS)
        first = [i * self.batches // self.timed for i in range(self.timed)]
        order = first + [i for i in range(self.batches) if i not in first]
        self.squares = [self.model.get_submodule(layers[i]) for i in order]

    def run(self, batches: int, advance: Callable[[], None]) -> list[Any]:
        answers = []
        for square in self.squares[:batches]:
            with torch.inference_mode():
                out = square()[0, ::SAMPLED]  # (queries, heads, D)
            answers.append(out.flatten(1).numpy().copy())
            advance()
        return answers

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        cosines = np.concatenate([_cosines(a, d) for a, d in zip(answers, dense, strict=True)])
        mean, low = float(np.mean(cosines)), float(np.percentile(cosines, 1))
        return [
            Figure("cosine_mean", "cosine to dense: mean", mean, f"{mean:.4f}"),
            Figure("cosine_low", "  worst hundredth", low, f"{low:.4f}"),
        ]

    def tell(self, answers: list[Any]) -> str | None:
        return None

    def scope(self, layers: int, every: int) -> str:
        weights = "with its 4-bit weights" if self.quantised else "as it was loaded"
        return (
            "The model kept its own attention while it read the text. What it asked and kept in "
            f"{layers} of its {every} layers was then attended by every method, each layer apart: "
            "the part of causal attention where old text is attended, which needs no mask. Dense "
            f"means this model {weights}."
        )

    def verdict(self, figures: Sequence[Figure]) -> str:
        mean, low = figures
        return (
            f"what a token gets from all heads of a layer keeps a cosine of {mean.text} to dense's "
            f"in the mean (one in a hundred is below {low.text})"
        )

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_least(figures[0], 0.99) and at_least(figures[1], 0.95)

    def reference(self) -> str | None:
        return None


@contextmanager
def _squares_of(model: nn.Module, half: int) -> Iterator[list[Square]]:
    """The list fills up with a square a layer, in the order of their calls, inside the block."""
    squares: list[Square] = []
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def capture(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        **options: Any,
    ) -> Any:
        rows = query[:, :, half:], key[:, :, :half], value[:, :, :half]
        # Copies, or they would keep alive all that the model computed.
        copied = (rows[0].clone(), rows[1].clone(), rows[2].clone())
        squares.append(Square(model.config, copied, options.get("scaling")))
        return attend(module, query, key, value, mask, **options)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = capture
    try:
        yield squares
    finally:  # what was registered for all shows again
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def _cosines(rows: Any, dense: Any) -> Any:
    """Of each row; 1 where both are 0, 0 where one is."""
    rows, dense = rows.astype(np.float64), dense.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(dense, axis=1)
    same = np.all(rows == dense, axis=1).astype(np.float64)
    return np.divide(np.sum(rows * dense, axis=1), lengths, out=same, where=lengths > 0)
