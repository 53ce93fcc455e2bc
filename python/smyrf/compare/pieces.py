"""How much of a text a model reads: its positions, its pieces of equal length, and how many."""

from __future__ import annotations

from typing import Any

from torch import nn

from smyrf.compare.models import Model, check_ids
from smyrf.compare.problem import Problem

LONGEST = 4096  # tokens of a document where nobody asks for more
UNBOUNDED = 10**6  # what tokenizers say for "any number" is above
# Multiply-adds by weights for all documents: some ten seconds a method on a small machine.
WORK = 2.5e12


def positions(model: Model) -> int | None:
    """The most tokens that a model has positions for; None where they are relative."""
    config = model.module.config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    for name, part in model.module.named_modules():
        if isinstance(part, nn.Embedding) and "position" in name.rpartition(".")[2]:
            # RoBERTa counts positions from the one behind padding's, BART from a fixed one.
            first = 0 if part.padding_idx is None else part.padding_idx + 1
            limits.append(part.num_embeddings - max(first, getattr(part, "offset", 0)))
    known = [int(limit) for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known, default=None)


def length_of(model: Model, asked: int | None, longest: int) -> int:
    """Tokens a document: those asked for, or all that the model has positions for up to `longest`.

    Raises Problem where it has no positions for so many.
    """
    most = positions(model)
    if asked is not None and most is not None and asked > most:
        raise Problem(
            f"--length {asked}: model {model.source.name} has positions for {most} tokens; give at "
            "most that"
        )
    if asked is not None:
        return asked
    if most is None:
        limit = int(min(model.tokenizer.model_max_length, UNBOUNDED))
        most = limit if limit < UNBOUNDED else longest
    return min(most, longest)


def cut(model: Model, text: str, length: int) -> tuple[list[list[int]], int]:
    """The text's pieces of `length` tokens, each with what the tokenizer puts around it, and how
    many shorter ones were left out. One shorter piece is taken where there is no other.

    Raises Problem where the tokenizer can't cut, or is another model's.
    """
    around = model.tokenizer.num_special_tokens_to_add()
    if length <= around:
        raise Problem(
            f"--length {length}: the tokenizer of {model.source.name} puts {around} tokens around "
            f"a document; give at least {around + 1}"
        )
    try:
        pieces = model.tokenizer(
            text, truncation=True, max_length=length, return_overflowing_tokens=True
        )["input_ids"]
    except Exception as error:  # tokenizers raise bare Exceptions
        raise Problem(f"model {model.source.name}: its tokenizer fails ({error})") from error
    if not pieces or not isinstance(pieces[0], list) or not pieces[0]:
        raise Problem(
            f"model {model.source.name}: its tokenizer can't cut a text into pieces; a "
            "tokenizer.json is needed"
        )
    check_ids(model, max(map(max, pieces)))
    # A shorter rest has another density and another cost; it counts only if it is all.
    full = [piece for piece in pieces if len(piece) == length] or pieces[:1]
    return full, len(pieces) - len(full)


def spread(pieces: list[Any], count: int) -> list[Any]:
    """So many of them, evenly spread."""
    count = min(count, len(pieces))
    step = len(pieces) / max(1, count)
    return [pieces[int(index * step)] for index in range(count)]


def affordable(model: Model, length: int, fewest: int, most: int) -> int:
    """How many documents of a length are run where nobody says."""
    embeddings = {
        id(part.weight) for part in model.module.modules() if isinstance(part, nn.Embedding)
    }
    weights = sum(p.numel() for p in model.module.parameters() if id(p) not in embeddings)
    return max(fewest, min(most, int(WORK / max(1, weights * length))))


def evenly(count: int, of: int) -> str:
    """How many of how many, as a title says it."""
    return f"{count} of {of} documents, evenly spread," if count < of else f"{count} documents"
