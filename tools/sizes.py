#!/usr/bin/env python3
"""Names files and functions that have grown too large; sizes.txt lists those known, and why."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import lizard

ROOT = Path(__file__).parents[1]
KNOWN = Path(__file__).with_name("sizes.txt")
# Lines of a function are those with code: without comments and docstrings.
MOST = {"file-lines": 500, "function-lines": 70, "parameters": 7}


def sources() -> Iterator[Path]:
    for folder in sorted(ROOT.iterdir()):
        if folder.is_dir() and folder.name not in ("build", "dist") and folder.name[0] != ".":
            yield from sorted(
                p for p in folder.rglob("*") if p.suffix in (".h", ".cc", ".py", ".sh")
            )


def name_of(function: lizard.FunctionInfo, text: list[str]) -> str:
    name = function.name.replace(" ", "").removeprefix("smyrf::")
    if name.rpartition("::")[2] in ("TEST", "TEST_P", "TEST_F"):
        arguments = re.search(r"\((\w+), *(\w+)", text[function.start_line - 1])
        name = f"{arguments[1]}.{arguments[2]}" if arguments else name
    return name


def sizes(path: Path) -> Iterator[tuple[str, str, int]]:
    """(kind, what, size) of a file and each of its functions."""
    where = str(path.relative_to(ROOT))
    text = path.read_text().splitlines()
    yield "file-lines", where, len(text)
    if path.suffix == ".sh":
        return
    functions = lizard.analyze_file(str(path)).function_list
    ends = {function.end_line for function in functions}
    for number, line in enumerate(text, 1):
        if path.suffix != ".py" and line == "}" and number not in ends:
            # It takes `a < b;` among the members of a class for a template's brackets.
            sys.exit(f"{where}:{number}: lizard missed this function; write `b > a` before it")
    for function in functions:
        what = f"{where}:{name_of(function, text)}"
        yield "function-lines", what, function.nloc
        own = [name for name in function.parameters if name not in ("self", "cls")]
        yield "parameters", what, len(own)


def known() -> dict[tuple[str, str], int]:
    lines = [
        line.split(maxsplit=3) for line in KNOWN.read_text().splitlines() if line[:1] not in "#"
    ]
    for line in lines:
        if len(line) < 4 or line[0] not in MOST or not line[1].isdigit():
            sys.exit(f"{KNOWN.name}: got {line}, expected: KIND SIZE WHAT REASON")
    return {(kind, what): int(size) for kind, size, what, _ in lines}


def main() -> None:
    allowed = known()
    found: dict[tuple[str, str], int] = {}
    for path in sources():
        for kind, what, size in sizes(path):
            if size > MOST[kind]:
                found[kind, what] = max(size, found.get((kind, what), 0))  # overloads share a name
    complaints = [
        f"{kind} {size} {what}: at most {allowed.get((kind, what), MOST[kind])}"
        for (kind, what), size in found.items()
        if size > allowed.get((kind, what), MOST[kind])
    ]
    complaints += [
        f"{kind} {size} {what}: is at {found.get((kind, what), 'no more than the limit')} now; "
        f"update tools/{KNOWN.name}"
        for (kind, what), size in allowed.items()
        if size > found.get((kind, what), 0)
    ]
    if complaints:
        sys.exit("\n".join(["Split these up:", *sorted(complaints)]))
    print(f"{len(found)} files and functions are larger than they should be, all of them known")


if __name__ == "__main__":
    main()
