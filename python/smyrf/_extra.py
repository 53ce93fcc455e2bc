"""Sentences that say how to install the packages of an extra of smyrf."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Mapping


def missing_extra(what: str, extra: str, oldest: Mapping[str, str], error: ImportError) -> str:
    """A sentence that says why `what` can't be imported, and what to type.

    `oldest` has the packages that it needs, with their oldest versions.
    """
    reason = str(error)
    if isinstance(error, ModuleNotFoundError):
        reason = f"{error.name} is not installed"
    else:
        for name, version in oldest.items():
            found = importlib.metadata.version(name)
            if _numbers(found) < _numbers(version):
                reason = f"{name} {found} is too old, {version} or newer is needed"
                break
    return f"{what}: {reason}; type: {to_install(extra)}"


def to_install(extra: str) -> str:
    """The command that installs what an extra asks for, wherever smyrf itself came from."""
    try:
        requirements = importlib.metadata.requires("smyrf") or []
    except importlib.metadata.PackageNotFoundError:  # no more than a folder on sys.path
        return f"pip install '/path/to/smyrf[{extra}]'"
    of_extra = re.compile(rf"(.*?)\s*;.*\bextra\s*==\s*['\"]{extra}['\"]")
    found = filter(None, map(of_extra.match, requirements))
    return shlex.join(["pip", "install", *(requirement[1] for requirement in found)])


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
