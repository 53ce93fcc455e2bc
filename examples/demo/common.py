"""What the demo's steps share: where results go, inputs, and how a line is printed."""

from __future__ import annotations

import gzip
import json
import os
import textwrap
from pathlib import Path
from typing import Any

from smyrf.compare.debian import file_of

ROOT = Path(__file__).resolve().parents[2]
BOOK = "The Devil's Dictionary (Ambrose Bierce, 1911)"
COLUMNS, LABEL = 80, 25  # of the screen, and of a row's first words
PREFACE = 2000  # characters of the dictionary's format before its text


def book() -> str:
    """The text of BOOK."""
    with gzip.open(file_of("usr/share/dictd/devil.dict.dz"), "rt", encoding="utf-8") as file:
        return file.read()[PREFACE:]


def threads() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0))


def head(number: int, text: str) -> None:
    print()
    say(text, f"{number}. ")


def say(text: str, before: str = "   ") -> None:
    """Prints a sentence, in lines of 80 columns."""
    print(textwrap.fill(text, COLUMNS, initial_indent=before, subsequent_indent="   "), flush=True)


def row(label: str, *cells: str) -> None:
    width = min(13, (COLUMNS - LABEL) // len(cells))
    print(f"   {label:{LABEL - 3}}" + "".join(f"{cell:>{width}}" for cell in cells), flush=True)


def keep(folder: Path, step: str, found: dict[str, Any]) -> None:
    """Writes what a step found, for the table at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{step}.json").write_text(json.dumps(found, indent=1) + "\n")


def shown(file: Path) -> str:
    """A path as a reader of the screen would type it."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def processor() -> str:
    """Its name, where Linux tells it."""
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return "an unknown processor"
