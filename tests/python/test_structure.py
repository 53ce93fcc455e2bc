"""What the sources may know of each other: rooms point one way, and a method lies in its folder."""

from __future__ import annotations

import ast
import difflib
import re
import shutil
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from smyrf import _core

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="needs the sources")

ROOMS = ("base", "simd", "run", "reference", "methods", "call")  # each knows those before it
# `auto` chooses between them, and the registry lists them all.
METHODS = {"auto": {"auto", "dense", "tree"}, "dense": {"dense"}, "lsh": {"lsh"}, "tree": {"tree"}}


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each C++ file."""
    for folder in folders:
        found = [p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".h", ".cc")]
        assert found, folder
        for path in found:
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def includes(text: str) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', text, re.MULTILINE)


def method_of(path: str) -> str | None:
    """The method in whose folder a file lies."""
    parts = path.removeprefix("src/").split("/")
    return parts[1] if parts[0] == "methods" and len(parts) > 2 else None


def lines_with(pattern: str, *folders: str, without: set[str]) -> list[str]:
    """Those outside of the folders of methods `without` and of the registry."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in sources(*folders)
        if method_of(path) not in without and path != "src/methods/registry.cc"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_every_room_is_known() -> None:
    assert {path.name for path in (ROOT / "src").iterdir()} == set(ROOMS)
    folders = {path.name for path in (ROOT / "src/methods").iterdir() if path.is_dir()}
    assert folders == set(METHODS) == {method["name"] for method in _core.methods()}


def test_rooms_know_only_those_below() -> None:
    wrong = [
        f"{path}: {include}"
        for path, text in sources("src")
        for include in includes(text)
        for room in [include.split("/")[0]]
        if room not in ("smyrf", "hwy") and room not in ROOMS[: ROOMS.index(path.split("/")[1]) + 1]
    ]
    assert wrong == []


def test_a_method_is_known_in_its_folder_only() -> None:
    wrong = []
    for path, text in sources("src"):
        own = method_of(path)
        known = set(METHODS) if path == "src/methods/registry.cc" else METHODS.get(own or "", set())
        wrong += [
            f"{path}: {include}"
            for include in includes(text)
            if method_of(include) is not None and method_of(include) not in known
        ]
    assert wrong == []


def test_the_extension_shows_nothing_but_its_start() -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    command = ["nm", "-D", "--defined-only", "--format=just-symbols", _core.__file__]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert names == ["PyInit__core"]


def test_public_headers_know_only_public_headers() -> None:
    wrong = [
        f"{path}: {include}"
        for path, text in sources("include")
        for include in includes(text)
        if not include.startswith("smyrf/")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("folder", "inner"),
    [
        ("bindings/python", "nothing else"),
        ("bindings/c", "nothing else"),
        # A plug-in is linked with the library's objects, and scans masks on the call's threads.
        ("integrations/ggml", r"base/\w+\.h|ggml[\w-]*\.h"),
    ],
)
def test_bindings_know_the_public_headers(folder: str, inner: str) -> None:
    own = {path.name for path in (ROOT / folder).iterdir()}
    wrong = [
        f"{path}: {include}"
        for path, text in sources(folder)
        if "/test/" not in path
        for include in includes(text)
        if include not in own and not re.fullmatch(rf"smyrf/.*|{inner}", include)
    ]
    assert wrong == []


def test_no_one_asks_which_method_it_is() -> None:
    assert lines_with(r"\bMethod::k\w+", "src", "bindings", without=set(METHODS)) == []


def test_lsh_is_named_in_its_folder_only() -> None:
    named = lines_with(r"\b[Ll]sh\b|\bLSH\b|\bLsh[A-Z]", "src", "bindings", without={"lsh", "auto"})
    assert named == []


def test_tree_is_named_in_its_folder_only() -> None:
    # Not key trees, which any method may have, nor the call of Python that shows them.
    name = r"""[`'"]tree[`'"]|\bmethods? tree\b|\bTreeMethod|\bkTree"""
    shown = r"""def\("tree"|"tree", plan"""
    named = lines_with(name, "src", "bindings", without={"tree", "auto"})
    assert [line for line in named if not re.search(shown, line)] == []


def test_a_method_of_ones_own_takes_a_line_of_the_registry() -> None:
    """tests/methods has the examples that HACKING.md speaks of."""
    library = (ROOT / "src/methods/registry.cc").read_text().splitlines()
    example = (ROOT / "tests/methods/registry.cc").read_text().splitlines()
    changed = [line for line in difflib.ndiff(library, example) if not line.startswith(" ")]
    assert changed == [
        '+ #include "methods/local/local.h"',
        '+ #include "methods/window/window.h"',
        "+       &LocalMethod(),",
        "+       &WindowMethod(),",
    ]
    folders = {"local", "window"}
    assert {path.name for path in (ROOT / "tests/methods").iterdir()} == {"registry.cc", *folders}


def test_the_table_of_methods_is_whole() -> None:
    methods = {method["name"]: method for method in _core.methods()}
    dials = {name: {dial["name"]: dial for dial in info["dials"]} for name, info in methods.items()}
    assert {name: set(of) for name, of in dials.items()} == {
        "auto": {"tolerance"},
        "dense": set(),
        "lsh": {"n_hashes", "cluster_size"},
        "tree": {"tolerance", "max_density"},
    }
    assert dials["lsh"]["n_hashes"]["default"] == 8
    assert dials["lsh"]["n_hashes"]["whole"]
    assert dials["tree"]["tolerance"]["default"] == 0.05
    assert dials["tree"]["max_density"]["default"] is None
    assert [name for name, info in methods.items() if info["chooses"]] == ["auto"]
    assert all(info["summary"] for info in methods.values())
    for of in dials.values():
        assert all(dial["meaning"] and dial["accepted"] for dial in of.values())


# Public names, and those that pickles of 0.2 hold, of what lies in python/smyrf/integrations.
THIN_NAMES = ("_interface", "_layers", "_masks", "gan", "torch", "transformers")
THIN = {f"smyrf.{name}" for name in THIN_NAMES}


def modules() -> dict[str, set[str]]:
    """The modules of python/smyrf, by name, and those of them that each imports anywhere in it."""
    files = {
        ".".join(path.relative_to(ROOT / "python").with_suffix("").parts): path
        for path in sorted((ROOT / "python/smyrf").rglob("*.py"))
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    imports: dict[str, set[str]] = {}
    for name, path in files.items():
        found = imports.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & set(files)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: a relative import"
                names = {f"{node.module}.{alias.name}" for alias in node.names} & set(files)
                found |= names or {str(node.module)} & set(files)
    return imports


def room_of(module: str) -> str:
    parts = module.split(".")
    if module in ("smyrf.cli", "smyrf.__main__"):
        return "compare"
    return parts[1] if len(parts) > 1 and parts[1] in ("compare", "integrations") else "core"


def test_rooms_of_python_know_only_those_below() -> None:
    known = {
        "core": {"core"},
        "integrations": {"core", "integrations"},
        "compare": {"core", "integrations", "compare"},
    }
    imports = modules()
    assert set(imports) >= THIN | {"smyrf.integrations.transformers.forward", "smyrf._tensors"}
    wrong = [
        f"{name}: {other}"
        for name, others in imports.items()
        for other in others
        if name not in THIN
        and (
            room_of(other) not in known[room_of(name)]
            or (other in THIN and room_of(name) != "compare")
        )
    ]
    assert wrong == []


def test_integrations_import_each_other_in_one_direction() -> None:
    imports = {
        name: others for name, others in modules().items() if room_of(name) == "integrations"
    }
    TopologicalSorter(imports).prepare()  # raises where they go in a circle
