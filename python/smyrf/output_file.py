"""A file that is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from smyrf.problem import Problem


@contextmanager
def written_aside(path: Path) -> Iterator[TextIO]:
    """A file that appears at `path` as a whole when the block ends well, and not otherwise.

    Raises Problem at once if it can't be written there.
    """
    if path.is_dir():
        raise Problem(f"--json {path}: is a folder, expected the name of a file")
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent, text=True)
    except OSError as error:
        raise Problem(f"--json {path}: can't be written there ({error.strerror})") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)  # mkstemp's files are for their owner only
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
