"""What a result depends on beside the model: versions, processor, date, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import smyrf
from smyrf import _core, _environment

PACKAGES = ("numpy", "torch", "transformers")


def processor() -> str:
    """As the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """None where it is not installed; imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    python = platform.python_version()
    found = {name: version_of(name) for name in PACKAGES}
    return {"smyrf": smyrf.__version__, "python": python, **found}


def instruction_set() -> str:
    """The one that runs."""
    return str(_core.instruction_sets()[0])


def threads() -> int:
    """How many a call runs on where it does not say."""
    return int(_core.threads(_environment.defaults.num_threads or 0))


def circumstances() -> dict[str, Any]:
    """For a file of results."""
    return {
        "versions": versions(),
        "processor": processor(),
        "instruction_set": instruction_set(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": {n: os.environ[n] for n in _environment.VARIABLES if n in os.environ},
        "command": shlex.join(["smyrf", *sys.argv[1:]]),
    }
