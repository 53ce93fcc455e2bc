"""The one exception the program turns into a sentence and exit code 2."""

from __future__ import annotations


class Problem(Exception):
    """Something its reader can put right: names what was given and what to do, in one sentence."""


def first_line(error: BaseException) -> str:
    """What a library said went wrong, cut to the one line that fits into a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
