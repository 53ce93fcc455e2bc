"""The one exception the program turns into a sentence and exit code 2."""

from __future__ import annotations

from smyrf._extra import to_install


class Problem(Exception):
    """Something its reader can put right: names what was given and what to do, in one sentence."""


def first_line(error: BaseException) -> str:
    """What a library said went wrong, cut to the one line that fits into a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def not_installed(error: ImportError, what: str) -> str:
    """Says which package is missing, and how to get everything that the program needs."""
    return f"{error.name} is not installed, and {what} needs it; type: {to_install('cli')}"
