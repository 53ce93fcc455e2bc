"""Exact: which columns the options of `smyrf compare` ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import smyrf
from smyrf.compare.choice import lsh_dials, pair
from smyrf.compare.problem import Problem


def columns(
    methods: str = "",
    tolerances: tuple[float, ...] = (),
    densities: tuple[float, ...] = (),
    max_density: float | None = None,
    **dials: Any,
) -> list[str]:
    n_hashes, cluster_sizes = dials.get("n_hashes", ()), dials.get("cluster_sizes", ())
    chosen = pair(methods.split(), tolerances, max_density, densities, n_hashes, cluster_sizes)
    return [choice.label for choice in chosen]


def test_dials_go_with_their_methods_in_order() -> None:
    assert columns() == ["tree 0.1", "tree 0.05"]
    assert columns("tree lsh") == ["tree 0.1", "tree 0.05", "lsh 0.5"]
    assert columns("auto tree", (0.2,)) == ["auto", "tree 0.2"]
    assert columns("lsh") == ["lsh 0.5"]
    assert columns(densities=(0.5, 0.25)) == ["lsh 0.5", "lsh 0.25"]
    assert columns(tolerances=(0.2,)) == ["tree 0.2"]
    assert columns(tolerances=(0.2,), densities=(0.1,)) == ["tree 0.2", "lsh 0.1"]
    assert columns("lsh tree", (0.2, 0.02)) == ["lsh 0.5", "tree 0.2", "tree 0.02"]
    interleaved = columns("tree lsh tree lsh", (0.2, 0.02), (0.5, 0.25))
    assert interleaved == ["tree 0.2", "lsh 0.5", "tree 0.02", "lsh 0.25"]
    assert columns("tree", (0.2,), max_density=0.3) == ["tree 0.2 cap 0.3"]
    assert columns(n_hashes=(4, 8), cluster_sizes=(32, 64)) == ["lsh 4 x 32", "lsh 8 x 64"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"methods": "lsh", "tolerances": (0.1,)}, r"--tolerance goes with --method tree"),
        ({"methods": "tree", "densities": (0.1,)}, r"--density .* goes with --method lsh"),
        ({"methods": "lsh", "max_density": 0.5}, r"--max-density goes with --method tree"),
        ({"methods": "tree tree", "tolerances": (0.1,)}, r"given 2 times and its dials 1 time"),
        ({"methods": "tree tree"}, r"given 2 times and its dials 0 times"),
        ({"methods": "lhs"}, r"unknown, this release has auto, lsh, tree"),
        ({"methods": "auto auto"}, r"--method auto: is given twice"),
        ({"methods": "dense"}, r"dense always runs"),
        ({"tolerances": (float("nan"),)}, r"--tolerance nan: must be from 0 to below 1"),
        ({"max_density": 0.0}, r"--max-density 0: must be above 0"),
        ({"densities": (0.5,), "n_hashes": (2,), "cluster_sizes": (8,)}, r"exclude each other"),
        ({"n_hashes": (2,)}, r"they go together"),
    ],
)
def test_what_does_not_pair(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(Problem, match=says):
        columns(**arguments)


@pytest.mark.parametrize("keys", [64, 512, 1000, 1500, 4096])
@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
def test_dials_evaluate_about_the_density(keys: int, density: float) -> None:
    rng = np.random.default_rng(keys)
    q, k = (rng.standard_normal((1, 1, keys, 8), np.float32) for _ in range(2))
    plan = smyrf.plan(q, k, method="lsh", **lsh_dials(density, keys))
    assert plan.density(0, 0) == pytest.approx(density, rel=0.2)
