"""Sentences about packages that an extra of smyrf installs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping


def missing_extra(what: str, extra: str, oldest: Mapping[str, str], error: ImportError) -> str:
    """What to type where `what` can't be imported.

    `oldest` names the packages that it needs and their oldest versions.
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
    return f"{what}: {reason}; type: pip install '/path/to/smyrf[{extra}]'"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
