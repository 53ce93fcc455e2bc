"""What the benchmarks print: the machine, and tables: by rich on a terminal, or as markdown."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:
    Console = None  # type: ignore[assignment,misc]


def machine() -> str:
    """The CPU's name as the system tells it, and how many cores this process may use."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, text = line.partition(":")
            fields[name.strip()] = text.strip()
        cores = len(os.sched_getaffinity(0))
    except (OSError, AttributeError):  # not Linux
        cores = os.cpu_count() or 1
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:  # virtual machines tell the brand only
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return f"{name}, {cores} cores, {platform.system()} {platform.machine()}"


Item = TypeVar("Item")


def progress(items: Sequence[Item], name: Callable[[Item], object] = str) -> Iterator[Item]:
    """Counts on the terminal; nothing where stderr goes elsewhere."""
    show = sys.stderr.isatty()
    for i, item in enumerate(items):
        if show:
            text = f"\r\033[K{i + 1} of {len(items)}: {name(item)}"
            print(text, end="", file=sys.stderr, flush=True)
        yield item
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


class Printer:
    """Prints headings, facts and tables to standard output."""

    def __init__(self, markdown: bool) -> None:
        rich = Console is not None and sys.stdout.isatty() and not markdown
        self._console = Console(highlight=False) if rich else None

    def text(self, line: str = "") -> None:
        if self._console is None:
            print(line)
        else:
            self._console.print(line, markup=False)

    def facts(self, facts: Mapping[str, str]) -> None:
        for name, value in facts.items():
            self.text(f"- {name}: {value}")
        self.text()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns whose heading ends in a space are text and stand left, others right."""
        if self._console is None:
            sides = [":--" if column.endswith(" ") else "--:" for column in columns]
            lines = [[column.strip() for column in columns], sides, *rows]
            print(f"**{title}**\n")
            print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")
            return
        grid = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
        for column in columns:
            grid.add_column(column.strip(), justify="left" if column.endswith(" ") else "right")
        for row in rows:
            grid.add_row(*row)
        self._console.print(grid, markup=False)
        self._console.print()
