"""A file that is written whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from smyrf.problem import Problem


@contextmanager
def written_aside(path: Path) -> Iterator[TextIO]:
    """A file that appears at `path` as a whole when the block ends well, and not otherwise.

    A link is followed, and a file that is already there keeps its mode. A pipe or terminal is not
    replaced: it gets the text when the block ends well.

    Raises Problem at once if it can't be written there.
    """
    try:
        before = path.stat().st_mode
    except FileNotFoundError:
        before = None
    except OSError as error:
        raise _refusal(path, error) from error
    if before is None or stat.S_ISREG(before):
        yield from _replacing(path.resolve(), path, before)
    elif stat.S_ISFIFO(before) or stat.S_ISCHR(before):
        text = io.StringIO()
        yield text
        try:
            path.write_text(text.getvalue(), "utf-8")
        except OSError as error:
            raise _refusal(path, error) from error
    else:
        raise Problem(f"--json {path}: is a folder or a device, expected the name of a file")


def _replacing(target: Path, path: Path, before: int | None) -> Iterator[TextIO]:
    """The file under another name in the same folder; it takes the target's place at the end."""
    try:
        handle, aside = tempfile.mkstemp(prefix=".smyrf.", dir=target.parent, text=True)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        # mkstemp's files are for their owner only.
        os.chmod(aside, 0o666 & ~umask if before is None else stat.S_IMODE(before))
        os.replace(aside, target)
    except BaseException:
        os.unlink(aside)
        raise


def _refusal(path: Path, error: OSError) -> Problem:
    return Problem(f"--json {path}: can't be written there ({error.strerror})")
