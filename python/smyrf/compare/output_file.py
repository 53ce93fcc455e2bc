"""Files that are written whole or not at all, and several of them, each for itself."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from smyrf.compare.problem import Problem, first_line

STDOUT = "-"


class OutputFile:
    """A file that appears at `path` as a whole when it is written, and not otherwise.

    `option` is what named it, for messages. "-" is stdout, by whatever name. A link is followed,
    and a file that is already there keeps its mode. A pipe or device is not replaced: it gets the
    content. Nothing is left beside the target between the check and `write`, so a run that is
    killed leaves nothing.

    Raises Problem at once if it can't be written there.
    """

    def __init__(self, path: Path, option: str) -> None:
        self.path = path
        self.option = option
        self.is_stdout = _is_stdout(path)
        if self.is_stdout:
            return
        try:
            self._mode = _mode(path)
            if self._is_replaced():
                self._target = path.resolve()
                if self._mode is not None and not os.access(self._target, os.W_OK):
                    raise Problem(f"{option} {path}: is there already and can't be written to")
                aside = self._aside()
                try:
                    aside.touch(exist_ok=False)
                finally:
                    aside.unlink(missing_ok=True)
            elif self._mode is not None and not _takes_content(self._mode):
                raise Problem(
                    f"{option} {path}: is a folder or a device, expected the name of a file"
                )
        except OSError as error:
            raise self._refusal(error) from error

    def write(self, content: bytes) -> None:
        """Puts the content there; raises Problem if it can't, and leaves what was there before."""
        try:
            if self.is_stdout:
                print_bytes(content)
            elif self._is_replaced():
                self._replace(content)
            else:
                self.path.write_bytes(content)
        except OSError as error:
            raise self._refusal(error) from error

    def _is_replaced(self) -> bool:
        return self._mode is None or stat.S_ISREG(self._mode)

    def _aside(self) -> Path:
        return self._target.with_name(f".smyrf.{secrets.token_hex(8)}")

    def _replace(self, content: bytes) -> None:
        """Under another name in the same folder, onto the disk, then in the target's place."""
        aside = self._aside()
        try:
            with aside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self._mode is not None:
                os.chmod(aside, stat.S_IMODE(self._mode))
            os.replace(aside, self._target)
        finally:
            aside.unlink(missing_ok=True)

    def _refusal(self, error: OSError) -> Problem:
        return Problem(f"{self.option} {self.path}: can't be written there ({error.strerror})")


def print_bytes(content: bytes) -> None:
    """All of it on stdout at once; raises OSError if it can't be written."""
    if sys.stdout is None:  # closed by whoever started the program
        raise OSError(errno.EBADF, "stdout is closed")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError:
        # Python would try again what is left, at its end, and say so in a traceback.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def deliver(outputs: Mapping[str, Callable[[], None]]) -> list[str]:
    """Carries out each output, by the name it has in messages, whatever becomes of the others.

    Returns a sentence for each that failed. Raises BrokenPipeError at the end where nothing else
    failed and whoever read stdout has enough.
    """
    failures = []
    enough = None
    for name, write in outputs.items():
        try:
            write()
        except Problem as problem:
            failures.append(str(problem))
        except BrokenPipeError as error:
            enough = error
        except OSError as error:
            failures.append(f"{name}: can't be written ({error.strerror})")
        except Exception as error:  # of a library that draws
            failures.append(f"{name}: can't be made ({first_line(error)})")
    if enough is not None and not failures:
        raise enough
    return failures


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP end the program as an exception does: files half written
    go, and the terminal is as before. What ignores a signal (nohup) goes on ignoring it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mode(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_mode
    return None


def _takes_content(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _is_stdout(path: Path) -> bool:
    """Whether it is "-" or what stdout goes to: two writers would take each other's place.

    /dev/null takes any number of them.
    """
    if str(path) == STDOUT:
        return True
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(1)) and not path.samefile(os.devnull)
    return False
