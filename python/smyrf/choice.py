"""Which methods are compared, and how a density becomes a method's own dials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from smyrf.problem import Problem

METHODS = ("lsh",)  # beside dense, which always runs
DENSITIES = (0.5, 0.25)  # where the user names none
CLUSTER = 32  # keys in a cluster: the paper's settings are many rounds of small clusters


@dataclass(frozen=True)
class Choice:
    """A method to compare with dense, by density or by its own dials."""

    method: str
    density: float | None = None
    dials: dict[str, int] = field(default_factory=dict)

    def resolve(self, keys: int) -> dict[str, int]:
        """The method's dials, for a layer with so many keys."""
        return self.dials if self.density is None else lsh_dials(self.density, keys)

    @property
    def label(self) -> str:
        """What a column is called."""
        if self.density is not None:
            return f"{self.method} {self.density:g}"
        return f"{self.method} {' x '.join(str(value) for value in self.dials.values())}"


def lsh_dials(density: float, keys: int) -> dict[str, int]:
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
    densities: Sequence[float],
    n_hashes: Sequence[int],
    cluster_sizes: Sequence[int],
) -> list[Choice]:
    """Pairs methods with dials in the order given; a single method goes with each of the dials.

    Raises Problem for an unknown method, for dials out of range, and for lists that don't pair.
    """
    for method in methods:
        if method == "dense":
            raise Problem("--method dense: dense always runs, as the base; name another or none")
        if method not in METHODS:
            raise Problem(f"--method {method}: unknown, this release has {', '.join(METHODS)}")
    for density in densities:
        if not 0 < density < 1:
            raise Problem(f"--density {density:g}: must be above 0 and below 1")
    if n_hashes or cluster_sizes:
        if densities:
            raise Problem("--density and --n-hashes with --cluster-size exclude each other")
        if len(n_hashes) != len(cluster_sizes):
            raise Problem(
                f"--n-hashes is given {len(n_hashes)} times and --cluster-size "
                f"{len(cluster_sizes)} times; they go together"
            )
        settings: list[tuple[float | None, dict[str, int]]] = [
            (None, {"n_hashes": rounds, "cluster_size": size})
            for rounds, size in zip(n_hashes, cluster_sizes, strict=True)
        ]
    else:
        settings = [(density, {}) for density in densities or DENSITIES]
    if len(methods) <= 1:
        methods = [*methods, *METHODS][:1] * len(settings)
    if len(methods) != len(settings):
        raise Problem(
            f"--method is given {len(methods)} times and its dials {len(settings)} times; "
            "give one --density, or one --n-hashes with --cluster-size, for each --method"
        )
    return [Choice(method, *setting) for method, setting in zip(methods, settings, strict=True)]
