"""Framework: what mypy says of programs that call smyrf, and what the types promise at run time."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smyrf

ROOT = Path(__file__).parents[2]

GOOD = """
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import smyrf
import smyrf.torch
from smyrf import Plan, Statistics

method: smyrf.Method = "dense"
layout: smyrf.Layout = "BNHD"
heads = np.ones((1, 2, 8, 4), np.float32)
array: NDArray[Any] = smyrf.attention(heads, heads, heads, method=method, layout=layout)
out, lse = smyrf.attention(array, heads, heads, return_lse=True, tolerance=0.1, seed=1)
shape: tuple[int, ...] = lse.shape
out, statistics = smyrf.attention(heads, heads, heads, return_stats=True)
taken: smyrf.Method = statistics.method
density: NDArray[np.float64] = statistics.density
out, lse, statistics = smyrf.attention(heads, heads, heads, return_lse=True, return_stats=True)
wanted = bool(shape)
several = smyrf.attention(heads, heads, heads, return_lse=wanted)
if isinstance(several, tuple):
    out = several[0]
out, lse = smyrf.merge(out, lse, out, lse)
exact: NDArray[np.float64] = smyrf.reference.attention(heads, heads, heads)
exact, exact_lse = smyrf.reference.attention(heads, heads, heads, return_lse=True)
expected: Statistics = smyrf.estimate(heads, heads, heads)

rows = torch.nn.Parameter(torch.ones(1, 2, 8, 4))
plan: Plan = smyrf.plan(rows, rows, rows, method="tree", key_padding_mask=torch.ones(1, 8).bool())
tensor: torch.Tensor = smyrf.attention(rows, rows, rows, plan=plan)
tensor, tensor_lse = smyrf.attention(rows, rows, rows, return_lse=True)
gradients = torch.autograd.grad(tensor.sum() + tensor_lse.sum(), rows)
with smyrf.torch.replace_sdpa("tree", tolerance=0.1, seed=1) as replacement:
    counted: int = replacement.taken
with smyrf.collect(errors=True) as records:
    array = smyrf.attention(heads, heads, heads, out=np.empty_like(heads))
error: NDArray[np.float64] | None = records[0].relative_error
"""

# Each line that ends in E: with a part of the sentence has an error, and no other line has one.
BAD = """
import numpy as np
import torch

import smyrf
import smyrf.torch

heads = np.ones((1, 2, 8, 4), np.float32)
rows = torch.ones(1, 2, 8, 4)
method = "tree" if heads.size else str(heads)
smyrf.attention(rows, rows, rows, method="tre")  # E: No overload variant
smyrf.attention(rows, rows, rows, method=method)  # E: No overload variant
smyrf.attention(heads, heads, heads, return_lse=True, method="tre")  # E: No overload variant
smyrf.attention(heads, heads, heads, layout="NHD")  # E: No overload variant
smyrf.attention(heads, heads, heads, tolerence=0.1)  # E: did you mean "tolerance"
smyrf.attention(heads, rows, heads)  # E: Value of type variable "Array"
smyrf.attention(rows, rows, rows).clones()  # E: has no attribute "clones"
smyrf.attention(heads, heads, heads).clone()  # E: has no attribute "clone"
smyrf.attention(rows, rows, rows, return_lse=True).sum()  # E: has no attribute "sum"
out, lse = smyrf.attention(rows, rows, rows, return_stats=True)
lse.exp()  # E: "Statistics" has no attribute "exp"
out, lse, _ = smyrf.attention(rows, rows, rows, return_lse=True)  # E: Need more than 2 values
smyrf.attention(rows, rows, rows, return_lse=bool(method)).sum()  # E: has no attribute "sum"
smyrf.plan(rows, rows, rows, method="tre")  # E: Argument "method" to "plan"
smyrf.plan(rows, rows, rows).method == "auto"  # E: Non-overlapping equality check
smyrf.estimate(heads, heads, heads, method="tre")  # E: Argument "method" to "estimate"
smyrf.merge(rows, rows, rows, rows, layout="NHD")  # E: Argument "layout" to "merge"
smyrf.reference.attention(heads, heads, heads, method="tre")  # E: No overload variant
smyrf.reference.attention(heads, heads, heads).clone()  # E: has no attribute "clone"
smyrf.torch.replace_sdpa("tre")  # E: Argument 1 to "replace_sdpa"
smyrf.torch.replace_sdpa("tree", tolerance="0.1")  # E: Argument "tolerance" to "replace_sdpa"
"""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """What mypy --strict says of both programs, by line."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("programs")
    programs = {"good.py": GOOD, "bad.py": BAD}
    for name, text in programs.items():
        (folder / name).write_text(text)
    # The project's own options, among them `strict`, so that one cache serves both.
    command = [sys.executable, "-m", "mypy", "--hide-error-context", "--no-error-summary"]
    run = subprocess.run(
        [*command, *(str(folder / name) for name in programs)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert run.stderr == ""
    found: dict[str, dict[int, str]] = {name: {} for name in programs}
    for line in run.stdout.splitlines():
        matched = re.match(r".*?([^/]+\.py):(\d+): error: (.*)", line)
        if matched:
            name, number, sentence = matched.groups()
            lines = found.setdefault(name, {})
            lines[int(number)] = lines.get(int(number), "") + sentence
    return found


def test_a_good_program_has_no_error(findings: dict[str, dict[int, str]]) -> None:
    assert findings["good.py"] == {}


def test_each_mistake_is_found_at_its_line(findings: dict[str, dict[int, str]]) -> None:
    expected = {
        number: line.partition("# E: ")[2]
        for number, line in enumerate(BAD.splitlines(), 1)
        if "# E: " in line
    }
    found = findings["bad.py"]
    assert set(found) == set(expected)
    for number, part in expected.items():
        assert part in found[number]


def test_nothing_else_has_an_error(findings: dict[str, dict[int, str]]) -> None:
    assert set(findings) == {"good.py", "bad.py"}


def test_the_good_program_runs() -> None:
    names: dict[str, Any] = {}
    exec(compile(GOOD, "good.py", "exec"), names)
    assert names["out"].dtype == names["lse"].dtype == np.float32
    assert names["exact"].dtype == np.float64
    assert names["gradients"][0].shape == names["rows"].shape


@pytest.mark.parametrize(("keyword", "alias"), [("method", smyrf.Method), ("layout", smyrf.Layout)])
def test_the_types_have_the_names_that_the_core_accepts(keyword: str, alias: Any) -> None:
    rows: Any = np.ones((1, 1, 2, 4), np.float32)
    with pytest.raises(ValueError, match=f"{keyword}: got 'none'") as error:
        smyrf.attention(rows, rows, rows, **{keyword: "none"})
    accepted = str(error.value).partition("accepted")[2]
    assert tuple(re.findall(r"'(\w+)'", accepted)) == typing.get_args(alias)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is of Python 3.11")
@pytest.mark.parametrize("function", [smyrf.attention, smyrf.reference.attention])
def test_overloads_have_the_parameters_of_the_function(function: Any) -> None:
    overloads = typing.get_overloads(function)
    assert overloads

    def defaults(of: Any) -> dict[str, Any]:
        parameters = inspect.signature(of).parameters
        return {n: p.default for n, p in parameters.items() if not n.startswith("return_")}

    for overload in overloads:
        assert list(inspect.signature(overload).parameters) == list(
            inspect.signature(function).parameters
        )
        assert defaults(overload) == defaults(function)


def test_type_checkers_find_the_types() -> None:
    package = Path(smyrf.__file__).parent
    assert (package / "py.typed").is_file()
    assert "class Plan" in (package / "_core.pyi").read_text()
