"""Checkpoints of training, and other files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smyrf.compare.problem import Problem, first_line


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for one run at a time: a second one would mix its files in.

    Raises Problem where it can't be made, or another run has it. A run that was killed has not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise Problem(f"--out {folder}: can't be written to ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem(
                f"--out {folder}: another run writes there; wait for it, or give another --out"
            ) from error
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Beside the file, onto the disk, then in its place: a kill or a full disk leaves the old one.

    Raises Problem where it can't be written.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        if not aside.is_dir():
            aside.unlink(missing_ok=True)
        kept = "; the one before is intact" if path.exists() else ""
        raise Problem(f"{path}: can't be written ({error.strerror}){kept}") from error


def save(path: Path, form: str, state: dict[str, Any]) -> None:
    """`form` names the program and its version, so that nothing else's checkpoint is read."""
    content = io.BytesIO()
    torch.save({"format": form, **state}, content)
    write_whole(path, content.getvalue())


def load(path: Path, form: str) -> dict[str, Any]:
    """What `save` wrote in this form; raises Problem if the file is anything else."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != form:
            raise ValueError(f"format is {state['format']!r}, expected {form!r}")
    except Exception as error:  # the reader raises exceptions of many kinds
        raise Problem(
            f"{path}: is damaged or no checkpoint ({first_line(error)}); "
            "remove it to start again, or give another --out"
        ) from error
    return state


def check_settings(path: Path, state: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Problem where the settings that the state was made with are not those of now."""
    with contents(path):
        kept = dict(state["settings"])
        for name, value in now.items():
            if kept.get(name) != value:
                raise Problem(
                    f"{path}: was made with {name} {kept.get(name)}, now it is {value}; "
                    "give the same, or another --out"
                )


@contextlib.contextmanager
def contents(path: Path) -> Iterator[None]:
    """Around what takes a loaded state apart: raises Problem where it lacks something."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise Problem(
            f"{path}: holds something else than expected ({first_line(error)}); "
            "remove it to start again, or give another --out"
        ) from error
