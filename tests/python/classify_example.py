"""What the tests of examples/classify share."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "classify"
NAMES = ("checkpoint", "corpus", "classifier", "figures", "train", "table")
WORDS = {"fruit": "apple pear plum grape", "tools": "hammer saw drill wrench"}


def modules() -> list[ModuleType]:
    """Imported from the example, and forgotten: another example has modules of the same names."""
    others = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))
    found = [import_module(name) for name in NAMES]
    sys.path.remove(str(EXAMPLE))
    for name in NAMES:
        del sys.modules[name]
    sys.modules.update(others)
    return found


def write_texts(folder: Path, count: int) -> Path:
    random = np.random.default_rng(5)
    for name, words in WORDS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            text = " ".join(random.choice([*words.split(), "the", "of", "and", "a"], 100))
            (folder / name / f"{index}.txt").write_text(text)
    return folder


def options(folder: Path, model: Path, out: Path, *more: str) -> list[str]:
    given = {"length": 64, "train": 16, "test": 8, "batch": 8, "threads": 1, "out": out}
    named = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [str(folder), "--model", str(model), *named, *more]
