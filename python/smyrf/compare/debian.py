"""Files of Debian packages: installed, or unpacked by tools/data.sh in smyrf's source tree."""

from __future__ import annotations

from pathlib import Path

UNPACKED = Path(__file__).parents[3] / "build" / "data"


def file_of(path: str) -> Path:
    """A file or folder of a package by its path without the leading slash.

    The unpacked one where it is there, else where the installed package has it.
    """
    unpacked = UNPACKED / path
    return unpacked if unpacked.exists() else Path("/") / path
