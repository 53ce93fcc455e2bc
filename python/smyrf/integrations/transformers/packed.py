"""Packed rows: a row holds several texts, and each text attends to itself alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]

# Of one row: the (query, key) at which each text begins, then that at which the last one ends.
Cuts = Sequence[tuple[int, int]]


def is_packed(kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer got lengths of texts, as `DataCollatorWithFlattening` makes them."""
    return kwargs.get("cu_seq_lens_q") is not None or kwargs.get("cu_seq_lens_k") is not None


def rows_of(
    name: str,
    kwargs: Mapping[str, Any],
    texts: Sequence[Sequence[int]] | None,
    sizes: tuple[int, int, int],
) -> Sequence[Cuts] | None:
    """The cuts of each row, from the lengths that a layer got and from the texts of its mask.

    Args:
        name: of the layer, for messages.
        kwargs: may have cu_seq_lens_q and cu_seq_lens_k.
        texts: for each row, or for all rows, where texts begin and the last one ends, in queries
            and keys alike.
        sizes: batch, queries, keys.

    Returns:
        The cuts of each row. Where lengths and mask are given, a text ends where either says so.
        None where neither is.

    Raises:
        NotImplementedError: lengths in a graph, which would keep those of its example.
        ValueError: lengths that don't fit the rows; texts of another batch; a mask of texts, and
            lengths that differ for queries and keys.
    """
    rows = _rows_of_lengths(name, kwargs, *sizes) if is_packed(kwargs) else None
    if texts is None:
        return rows
    batch = sizes[0]
    if len(texts) not in (1, batch):
        raise ValueError(f"{name}: got a batch of {batch}, the model's mask is for {len(texts)}")
    of_mask = [[(cut, cut) for cut in cuts] for cuts in texts] * (batch // len(texts))
    if rows is None:
        return of_mask
    if any(query != key for cuts in rows for query, key in cuts):
        raise ValueError(
            f"{name}: cu_seq_lens_q and cu_seq_lens_k differ, and position_ids that begin anew say "
            "that they don't; leave position_ids or lengths out"
        )
    return [sorted({*lengths, *cuts}) for lengths, cuts in zip(rows, of_mask, strict=True)]


def _rows_of_lengths(
    name: str, kwargs: Mapping[str, Any], batch: int, queries: int, keys: int
) -> list[Cuts]:
    """The cuts of each row.

    Args:
        name: of the layer, for messages.
        kwargs: cu_seq_lens_q and cu_seq_lens_k, whole numbers: where texts begin and the last one
            ends, in the queries and in the keys of all rows, one row after another. Where one of
            them is missing, the other stands for both.
        batch, queries, keys: sizes of the rows.

    Raises:
        NotImplementedError: in a graph, which would keep the lengths of its example.
        ValueError: the lengths don't fit the rows.
    """
    # A compiler ends its graph at this error and runs the layer outside, unless it was given
    # fullgraph=True.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise NotImplementedError(
            f"{name}: got cu_seq_lens_q, whose lengths no graph can hold; compile without "
            "fullgraph=True, or trace with a padded batch and attention_mask"
        )
    given = [kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")]
    of_queries, of_keys = (
        _checked(f"{name}: cu_seq_lens_{side}", own if own is not None else other, batch * size)
        for side, own, other, size in zip("qk", given, given[::-1], (queries, keys), strict=True)
    )
    if len(of_queries) != len(of_keys):
        raise ValueError(
            f"{name}: got {len(of_queries) - 1} texts in cu_seq_lens_q and {len(of_keys) - 1} in "
            "cu_seq_lens_k, expected as many"
        )
    cuts = list(zip(of_queries, of_keys, strict=True))
    ends = [(row * queries, row * keys) for row in range(batch + 1)]
    if not set(ends) <= set(cuts):
        raise ValueError(
            f"{name}: got cu_seq_lens_q={of_queries}, in which a text crosses the end of a row of "
            f"{queries} queries and {keys} keys; expected texts that lie in one row"
        )
    places = [cuts.index(end) for end in ends]
    return [
        [(q - first_query, k - first_key) for q, k in cuts[place : next_place + 1]]
        for (first_query, first_key), (place, next_place) in zip(
            ends, itertools.pairwise(places), strict=False
        )
    ]


def _checked(what: str, given: Any, size: int) -> list[int]:
    """The cuts as a list; raises unless they rise from 0 to size."""
    cuts = given.tolist() if isinstance(given, torch.Tensor) else list(given)
    right = isinstance(cuts, list) and all(isinstance(cut, int) for cut in cuts)
    if not right or cuts[:1] != [0] or cuts[-1:] != [size] or sorted(cuts) != cuts:
        raise ValueError(
            f"{what}: got {cuts}, expected whole numbers that begin with 0, never fall and end "
            f"with {size}, the end of the last text"
        )
    return cuts


def attend_texts(
    rows: Sequence[Cuts],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: Mapping[str, Any],
    attend: Attend,
) -> torch.Tensor:
    """Attention of each text to itself.

    Args:
        rows: the cuts of each row of the batch.
        query, key, value: (B or 1, N, H, D).
        options: for `attend`. Masks are those of whole rows. By causality and window, the last
            query of a text stands at its last key.
        attend: computes one text, (1, n, H, D), from query, key, value and options.

    Returns:
        (B, Nq, H, Dv).
    """
    query, key, value = (x.expand(len(rows), -1, -1, -1) for x in (query, key, value))
    outputs = []
    for row, cuts in enumerate(rows):
        ends = list(zip(*cuts, strict=True))
        lengths = [[b - a for a, b in itertools.pairwise(side)] for side in ends]
        # Not slices: the gradient of a slice takes the memory of a whole row. That of all parts of
        # torch.split is one concatenation.
        texts = zip(
            torch.split(query[row : row + 1], lengths[0], dim=1),
            torch.split(key[row : row + 1], lengths[1], dim=1),
            torch.split(value[row : row + 1], lengths[1], dim=1),
            itertools.pairwise(cuts),
            strict=True,
        )
        parts = [attend(q, k, v, _masks_of_text(options, row, *span)) for q, k, v, span in texts]
        outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs)


def _masks_of_text(
    options: Mapping[str, Any], row: int, begin: tuple[int, int], end: tuple[int, int]
) -> dict[str, Any]:
    """The options of one text: masks of whole rows are cut to its queries and keys.

    `begin` and `end` are (query, key).
    """
    cut = dict(options)
    rows, queries, keys = slice(row, row + 1), slice(begin[0], end[0]), slice(begin[1], end[1])
    for mask, columns in (("query_padding_mask", queries), ("key_padding_mask", keys)):
        if cut.get(mask) is not None:
            cut[mask] = cut[mask][rows, columns]
    full = cut.get("attn_mask")
    if full is not None:
        spans = (rows, slice(None), queries, keys)
        cut["attn_mask"] = full[
            tuple(
                span if size > 1 else slice(None)
                for span, size in zip(spans, full.shape, strict=True)
            )
        ]
    return cut
