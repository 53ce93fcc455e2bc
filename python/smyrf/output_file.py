"""A file that is written whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from smyrf.problem import Problem


@contextmanager
def written_aside(path: Path, option: str) -> Iterator[BinaryIO]:
    """A file that appears at `path` as a whole when the block ends well, and not otherwise.

    `option` is what named it, for messages. A link is followed, and a file that is already there
    keeps its mode. A pipe or terminal is not replaced: it gets the content when the block ends
    well.

    Raises Problem at once if it can't be written there.
    """
    try:
        before = path.stat().st_mode
    except FileNotFoundError:
        before = None
    except OSError as error:
        raise _refusal(path, option, error) from error
    if before is None or stat.S_ISREG(before):
        yield from _replacing(path.resolve(), path, option, before)
    elif stat.S_ISFIFO(before) or stat.S_ISCHR(before):
        content = io.BytesIO()
        yield content
        try:
            path.write_bytes(content.getvalue())
        except OSError as error:
            raise _refusal(path, option, error) from error
    else:
        raise Problem(f"{option} {path}: is a folder or a device, expected the name of a file")


def _replacing(target: Path, path: Path, option: str, before: int | None) -> Iterator[BinaryIO]:
    """The file under another name in the same folder; it takes the target's place at the end."""
    try:
        handle, aside = tempfile.mkstemp(prefix=".smyrf.", dir=target.parent)
    except OSError as error:
        raise _refusal(path, option, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        # mkstemp's files are for their owner only.
        os.chmod(aside, 0o666 & ~umask if before is None else stat.S_IMODE(before))
        os.replace(aside, target)
    except BaseException:
        os.unlink(aside)
        raise


def _refusal(path: Path, option: str, error: OSError) -> Problem:
    return Problem(f"{option} {path}: can't be written there ({error.strerror})")
