"""Which methods are compared, and how a density becomes the dials of `lsh`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from smyrf import _core
from smyrf._types import Method
from smyrf.compare.problem import Problem

# Beside dense, which always runs.
METHODS = {info["name"]: info["summary"] for info in _core.methods() if info["name"] != "dense"}
DEFAULT = ("tree",)
# Where the user names none.
TOLERANCES = (0.1, 0.05)
DENSITIES = (0.5,)
CLUSTER = 32  # keys in a cluster: the paper's settings are many rounds of small clusters
# The option that gives a method its columns, as messages call it.
DIALS = {"tree": "--tolerance", "lsh": "--density (or --n-hashes with --cluster-size)"}


@dataclass(frozen=True)
class Choice:
    """A method to compare with dense: `lsh` by density or by its own dials, `tree` by its dials,
    `auto` as it comes."""

    method: Method
    density: float | None = None
    dials: dict[str, float] = field(default_factory=dict)

    def resolve(self, keys: int) -> dict[str, float]:
        """The method's dials, for a layer with so many keys."""
        return self.dials if self.density is None else lsh_dials(self.density, keys)

    @property
    def label(self) -> str:
        """What a column is called."""
        if self.method == "auto":
            return "auto"
        if self.density is not None:
            return f"{self.method} {self.density:g}"
        separator = " x " if self.method == "lsh" else " cap "
        return f"{self.method} {separator.join(f'{value:g}' for value in self.dials.values())}"


def lsh_dials(density: float, keys: int) -> dict[str, float]:
    """n_hashes and cluster_size with which `lsh` evaluates about `density` of all pairs.

    Each of n_hashes rounds cuts the keys into round(keys / cluster_size) clusters and evaluates
    one pair in so many: density = n_hashes / round(keys / cluster_size). Clusters have about 32
    keys, as in the paper; n_hashes is the nearest integer for them (at least 1), and cluster_size
    then makes up for its rounding.
    """
    n_hashes = max(1, round(density * keys / CLUSTER))
    return {"n_hashes": n_hashes, "cluster_size": max(1, round(density * keys / n_hashes))}


def pair(
    methods: Sequence[str],
    tolerances: Sequence[float],
    max_density: float | None,
    densities: Sequence[float],
    n_hashes: Sequence[int],
    cluster_sizes: Sequence[int],
) -> list[Choice]:
    """The columns that options ask for, in order.

    A method that is given once goes with each of its dials, one that is given several times with
    one each, in the order given. Without methods the dials say which, and without dials each
    method has its default ones.

    Raises Problem for an unknown method or `auto` twice, for dials out of range, for dials of a
    method that is not asked for, and for lists that don't pair.
    """
    for method in methods:
        if method == "dense":
            raise Problem("--method dense: dense always runs, as the base; name another or none")
        if method not in METHODS:
            raise Problem(f"--method {method}: unknown, this release has {', '.join(METHODS)}")
    if methods.count("auto") > 1:
        raise Problem("--method auto: is given twice, and has no dials; name it once")
    lsh = _lsh(densities, n_hashes, cluster_sizes)
    given = {"tree": len(tolerances), "lsh": len(lsh)}
    methods = methods or [method for method in given if given[method]] or DEFAULT
    for method, count in given.items():
        asked = methods.count(method)
        if count and not asked:
            raise Problem(f"{DIALS[method]} goes with --method {method}, which is not asked for")
        if asked > 1 and asked != count:
            raise Problem(
                f"--method {method} is given {asked} times and its dials {count} times; give one "
                f"{DIALS[method]} for each"
            )
    if max_density is not None and "tree" not in methods:
        raise Problem("--max-density goes with --method tree, which is not asked for")
    columns = {
        "tree": _tree(tolerances or TOLERANCES, max_density),
        "lsh": lsh or _lsh(DENSITIES, (), ()),
        "auto": [Choice("auto")],
    }
    choices = []
    for method in methods:
        count = len(columns[method]) if methods.count(method) == 1 else 1
        choices += columns[method][:count]
        columns[method] = columns[method][count:]
    return choices


def _tree(tolerances: Sequence[float], max_density: float | None) -> list[Choice]:
    for tolerance in tolerances:
        if not 0 <= tolerance < 1:
            raise Problem(f"--tolerance {tolerance:g}: must be from 0 to below 1; 5 % is .05")
    if max_density is not None and not 0 < max_density <= 1:
        raise Problem(f"--max-density {max_density:g}: must be above 0 and at most 1")
    cap = {} if max_density is None else {"max_density": max_density}
    return [Choice("tree", dials={"tolerance": tolerance, **cap}) for tolerance in tolerances]


def _lsh(
    densities: Sequence[float], n_hashes: Sequence[int], cluster_sizes: Sequence[int]
) -> list[Choice]:
    for density in densities:
        if not 0 < density < 1:
            raise Problem(f"--density {density:g}: must be above 0 and below 1")
    if densities and (n_hashes or cluster_sizes):
        raise Problem("--density and --n-hashes with --cluster-size exclude each other")
    if len(n_hashes) != len(cluster_sizes):
        raise Problem(
            f"--n-hashes is given {len(n_hashes)} times and --cluster-size "
            f"{len(cluster_sizes)} times; they go together"
        )
    return [Choice("lsh", density) for density in densities] + [
        Choice("lsh", dials={"n_hashes": rounds, "cluster_size": size})
        for rounds, size in zip(n_hashes, cluster_sizes, strict=True)
    ]
