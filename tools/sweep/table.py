"""The table of a sweep: in the terminal, and as Markdown."""

from __future__ import annotations

import collections
import datetime
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from sweep.bounds import BOUND

Row = dict[str, Any]
VERDICTS = ("WRONG", "refuses", "forward only", "unclear", "not built", "works")


def show(rows: list[Row], console: Console) -> None:
    """Print every row that doesn't work, and how many rows have each verdict."""
    drawn = Table("model type", "class", "verdict", "why", "s")
    for verdict in VERDICTS[:-1] if len(rows) > 20 else VERDICTS:
        for row in rows:
            if row["verdict"] == verdict:
                why = row.get("why") or f"within {row.get('deviation', 0):.1e}"
                seconds = f"{row.get('seconds', 0):.1f}"
                drawn.add_row(row["model_type"], row.get("model_class", ""), verdict, why, seconds)
    console.print(drawn)
    counts = collections.Counter(row["verdict"] for row in rows)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))


def markdown(rows: list[Row]) -> str:
    """docs/transformers.md: what works, what is refused and why, what was not tried and why."""
    counts = collections.Counter(kind(row) for row in rows)
    lines = [
        "# Model types of transformers",
        "",
        "`python tools/sweep_transformers.py --markdown docs/transformers.md` wrote this file on "
        f"{datetime.date.today()}, with torch {version('torch')} and transformers "
        f"{version('transformers')}. It builds each model type small, with random weights, and "
        "compares smyrf with transformers' own `sdpa` and `eager` attention: outputs and "
        "gradients, without padding, padded on the right and on the left; the model loaded with "
        '`attn_implementation="smyrf"` (`auto`, which is dense at these sizes), and switched on '
        "by `enable` with `dense`, and with `tree` "
        "at tolerance 0. Deviations count in standard deviations of an output or gradient; a "
        f"model works if they are below {BOUND:g}.",
        "",
        "| what | model types |",
        "|---|---|",
        *(f"| {name} | {counts[name]} |" for name in KINDS),
    ]
    for name, text in KINDS.items():
        chosen = [row for row in rows if kind(row) == name]
        if chosen:
            lines += ["", f"## {name[0].upper()}{name[1:]}", "", text, "", *_table(name, chosen)]
    return "\n".join(lines) + "\n"


def kind(row: Row) -> str:
    """The part of the table that a row belongs to."""
    verdict = row["verdict"]
    own = not row.get("calls")
    if verdict == "refuses" and "sdpa" not in row["references"]:
        return "refused, and by sdpa too"
    names = {"refuses": "refused", "not built": "not tried", "WRONG": "silently wrong"}
    if verdict == "works":
        return "no attention to switch" if own else "works"
    return names.get(verdict, verdict)


KINDS = {
    "silently wrong": "Outputs or gradients differ and nothing says so. These are faults.",
    "works": "`tree`: what `tree` at tolerance 0 does in all layers. It takes no causal mask and "
    "no window: `enable(..., layers=...)` leaves such layers out.",
    "forward only": "Outputs are right; with gradients smyrf raises an error and `sdpa` doesn't.",
    "refused": "smyrf raises an error, though `sdpa` runs the model.",
    "refused, and by sdpa too": "`sdpa` raises an error for these models, too: they compute "
    "attention themselves, have none, or need what `sdpa` doesn't do (softcap, sinks).",
    "no attention to switch": "Nothing calls smyrf, and the outputs are those of `eager`.",
    "unclear": "`sdpa` and `eager` differ from each other, so there is nothing to compare with.",
    "not tried": "The sweep couldn't build these small, or transformers couldn't run them here.",
}


def _table(name: str, rows: list[Row]) -> list[str]:
    if name == "works":
        lines = [
            "| model type | class | paddings | largest deviation | `tree` |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            paddings = ", ".join(row["results"])
            cells = [row["model_type"], row["model_class"], paddings]
            lines.append(f"| {' | '.join(cells)} | {row['deviation']:.0e} | {_tree(row)} |")
        return lines
    lines = ["| model type | class | why |", "|---|---|---|"]
    for row in rows:
        why = _cell(row.get("why") or "", 100 if name == "not tried" else 240)
        dense = [ways["dense"]["verdict"] for ways in row["results"].values() if "dense" in ways]
        if name == "refused" and {*dense} == {"works"}:
            why += ". `enable` with `dense` works."
        lines.append(f"| {row['model_type']} | {row.get('model_class', '')} | {why} |")
    return lines


def _tree(row: Row) -> str:
    found = [ways["tree"] for ways in row["results"].values() if "tree" in ways]
    refused = next((one["why"] for one in found if one["verdict"] == "refuses"), None)
    if refused is None:
        return "works"
    for word in ("is_causal", "window", "attn_mask", "position_bias"):
        if f"{word}:" in refused or f"got {word}" in refused:
            return f"refuses {word}"
    return f"refuses: {_cell(refused)}"


def _cell(text: str, longest: int = 240) -> str:
    short = text if len(text) < longest else text[:longest] + " ..."
    return short.replace("|", "\\|").replace("<", "&lt;")
