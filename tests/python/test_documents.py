"""Exact: the documents' Python runs, their links lead somewhere, and pages stay short.

Blocks marked ```python run in order, those of a file in one namespace. Each of them finds what
`names` gives, whatever the blocks before made of these names. A block that can't run here has a
comment on the line before it: <!-- not run: why -->.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_generator
import torch
from transformers import AutoModel, AutoTokenizer

from smyrf.compare.models import find_model

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
)  # fmt: skip
# So that a page is read to its end.
MOST_LINES = {
    "README.md": 120,
    "docs/benchmarks.md": 80,
    "docs/choosing.md": 120,
    "docs/contract.md": 250,
    "docs/paper.md": 120,
}
# Loads a backend that stays in the process.
APART = {"docs/llama-cpp.md"}
# A file that the reader makes.
NOT_THERE: set[str] = set()

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: [^\n]{10,} -->\n\Z")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# A file of the repository, wherever a text names it: in a command, in backticks.
FILE = re.compile(
    r"(?<![\w./-])(?:benchmarks|docs|examples|integrations|python|src|tests|tools)"
    r"/[\w./-]*\w\.(?:cc|h|md|npz|py|sh|svg|txt)\b"
)


@dataclass(frozen=True)
class Block:
    """Python of a page; `line` is that of its first line, counted from 1."""

    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """The blocks that are meant to run."""
    return [
        Block(found[2], text.count("\n", 0, found.start(2)) + 1)
        for found in FENCE.finditer(text)
        if found[1] == "python" and not NOT_RUN.search(text, 0, found.start())
    ]


def run(page: str, found: list[Block], given: dict[str, Any]) -> None:
    """Tracebacks name the page and its line."""
    namespace: dict[str, Any] = {}
    for block in found:
        source = "\n" * (block.line - 1) + block.code
        namespace.update(given)
        exec(compile(source, page, "exec"), namespace)


def names() -> dict[str, Any]:
    """What a page may use without making it: small ones, of real weights where there are some."""
    folder = str(find_model("minilm").folder)
    texts = ["Call me Ishmael.", "It was the best of times, it was the worst of times. " * 4]
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    return {
        "folder": folder,  # a text encoder
        "model": AutoModel.from_pretrained(folder).eval(),
        "inputs": inputs,
        "x": inputs["input_ids"],
        "texts": texts,
        "loader": [{**inputs, "labels": torch.tensor([0, 1])}],
        "generator": small_generator.build().generator,
    }


@pytest.fixture
def undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages write into a folder of their own, and leave PyTorch's function as it was."""
    monkeypatch.chdir(tmp_path)
    before = torch.nn.functional.scaled_dot_product_attention
    yield
    assert torch.nn.functional.scaled_dot_product_attention is before


WITH_CODE = [
    name for page in PAGES if blocks(page.read_text()) and (name := str(page.relative_to(ROOT)))
]


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("page", WITH_CODE)
def test_python_of_the_page_runs(page: str) -> None:
    found = blocks((ROOT / page).read_text())
    if page not in APART:
        run(page, found, names())
        return
    code = "\n".join(block.code for block in found)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_blocks_are_found_run_in_order_and_fail_at_their_line() -> None:
    page = "```python\nx = y = 1\n```\n<!-- not run: no such machine -->\n```python\n1 / 0\n```\n\n"
    page += "```\nno Python\n```\n<!-- not run: -->\n"
    page += "```python\nx += y\nassert x == 3\nassert not x\n```\n"
    found = blocks(page)
    assert [block.line for block in found] == [2, 14]
    with pytest.raises(AssertionError) as failed:
        run("page.md", found, {"y": 2})
    assert (str(failed.traceback[-1].path), failed.traceback[-1].lineno) == ("page.md", 15)


def anchors(text: str) -> list[str]:
    """Of the headings, as GitHub makes them."""
    made: list[str] = []
    for title in HEADING.findall(FENCE.sub("", text)):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        again = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", other) is not None for other in made)
        made.append(f"{slug}-{again}" if again else slug)
    return made


def broken(page: Path) -> list[str]:
    """Links of a page to files and headings that are not there."""
    found = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_files_are_there(page: Path) -> None:
    assert broken(page) == []
    if page.name != "CHANGELOG.md":  # which tells of files that have gone
        named = set(FILE.findall(page.read_text())) - NOT_THERE
        assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# The `a_b`, [c](d): e-f?\n## Twice\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#the-a_b-c-e-f) [b](#here) [c](other.md#twice-1) [d](https://e.f/g)\n"
        "[e](other.md#twice-2) [f](gone.md) [g](#gone) ![h](gone.png)\n```\n[i](gone)\n```\n"
    )
    assert broken(page) == ["other.md#twice-2", "gone.md", "#gone", "gone.png"]


@pytest.mark.parametrize("page", MOST_LINES)
def test_the_page_is_short(page: str) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= MOST_LINES[page]
