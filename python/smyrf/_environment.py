"""Defaults out of the environment, and one line in the log when a process first approximates."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLES = ("SMYRF_METHOD", "SMYRF_TOLERANCE", "SMYRF_NUM_THREADS")
METHODS = ("auto", "dense", "tree")
MOST_THREADS = 4096
# With fewer queries or keys every pair is exact, by any default.
NARROW_QUERIES, NARROW_KEYS = 128, 256

logger = logging.getLogger("smyrf")


@dataclass(frozen=True)
class Defaults:
    """Values of arguments that a call leaves out. None: the environment says nothing."""

    method: str | None = None
    tolerance: float | None = None
    num_threads: int | None = None


def read(environment: Mapping[str, str]) -> Defaults:
    """The defaults that an environment sets; an empty variable sets none.

    Raises:
        ValueError: a variable with a value that is not accepted.
    """
    method, tolerance, threads = (environment.get(name) or None for name in VARIABLES)
    if method is not None and method not in METHODS:
        raise ValueError(f"SMYRF_METHOD: got {method!r}, expected {', '.join(METHODS)}")
    bound = None if tolerance is None else _number(float, tolerance)
    if tolerance is not None and (bound is None or not 0 <= bound < 1):
        raise ValueError(f"SMYRF_TOLERANCE: got {tolerance!r}, expected a number from 0 to below 1")
    count = None if threads is None else _number(int, threads)
    if threads is not None and (count is None or not 1 <= count <= MOST_THREADS):
        raise ValueError(
            f"SMYRF_NUM_THREADS: got {threads!r}, expected a whole number from 1 to {MOST_THREADS}"
        )
    return Defaults(None if method == "auto" else method, bound, count)


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


# Read once. A bad value is raised by the first call, so that an import does not fail for it.
NOTHING = Defaults()
defaults, problem = NOTHING, ""
try:
    defaults = NOTHING if read(os.environ) == NOTHING else read(os.environ)
except ValueError as error:
    problem = str(error)


def threads(num_threads: int | None) -> int | None:
    """The number asked for, else the environment's."""
    if problem:
        raise ValueError(problem)
    return defaults.num_threads if num_threads is None else num_threads


def completed(options: dict[str, Any], plan: Any = None) -> dict[str, Any]:
    """The options, with the environment's defaults where they name nothing.

    A call with a plan takes only the number of threads. A call that names a method or a tolerance
    keeps them. SMYRF_METHOD=tree changes no call that `tree` can't take: with causality, a window,
    dropout or attn_mask, the method stays "auto".
    """
    if problem:
        raise ValueError(problem)
    if defaults is NOTHING:  # nearly always
        return options
    found = {**options, "num_threads": threads(options["num_threads"])}
    if plan is not None:
        return found
    if found["method"] == "auto":
        if defaults.method == "dense":
            return {**found, "method": "dense", "tolerance": None}
        refused = any(found.get(name) for name in ("is_causal", "window", "dropout_p"))
        if defaults.method == "tree" and not refused and found["attn_mask"] is None:
            found["method"] = "auto" if found["tolerance"] == 0 else "tree"
    if found["method"] in ("auto", "tree") and found["tolerance"] is None:
        found["tolerance"] = defaults.tolerance
    return found


_said = False


def is_first(options: Mapping[str, Any], plan: Any, query: Any, key: Any) -> bool:
    """Whether this call may be the first approximate one. Its statistics say whether it is."""
    method, precision = options["method"], options.get("precision")
    if _said or (method == "dense" and plan is None and precision in (None, "auto", "float32")):
        return False
    if plan is not None or method in ("tree", "lsh"):
        return True
    if query.ndim != 4 or key.ndim != 4:  # the core will refuse it
        return False
    rows = -3 if options["layout"] == "BNHD" else -2
    return bool(query.shape[rows] >= NARROW_QUERIES and key.shape[rows] >= NARROW_KEYS)


def say_first(statistics: Any, options: Mapping[str, Any]) -> None:
    """Log, once a process, which method computed in place of exact attention.

    The line is a warning if the caller named no method, else information.
    """
    global _said
    if statistics is None:
        return
    narrow = {name for heads in statistics.precision for name in heads} - {"float32"}
    if not narrow and (statistics.method == "dense" or not (statistics.density < 1).any()):
        return
    _said = True
    how = statistics.method
    if narrow:
        how += f", products in {' and '.join(sorted(narrow))}"
    if how != "lsh" and options.get("precision") in (None, "auto"):
        tolerance = options["tolerance"]
        how += f", tolerance {0.05 if tolerance is None else tolerance:g} a head"
    logger.log(
        logging.WARNING if options["method"] == "auto" else logging.INFO,
        "attention is approximate from here on (method %s); method='dense' or the environment "
        "variable SMYRF_METHOD=dense turns that off where no other method is asked for",
        how,
    )
