"""A labelled corpus: a folder of classes, and one made of Debian's package descriptions.

    python examples/classify/corpus.py classify-corpus

writes FOLDER/SECTION/NUMBER.txt: a thousand documents of ten of Debian's sections, each the
descriptions of a few source packages. It reads the archive's lists with apt (16 MB, no root), into
a folder of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smyrf.compare.problem import Problem, first_line

DEFAULT = Path("classify-corpus")
# Those with the most text, but for libraries, languages and fonts, which say what they are.
SECTIONS = ("admin", "devel", "games", "misc", "net", "science", "sound", "text", "utils", "x11")
DOCUMENTS = 105  # at most, a section
EXPECTED = 1000  # at least, of all
WORDS = 360  # at least, in a document: MiniLM's tokenizer makes 512 tokens of nearly all of them
FEWEST = 15  # words of a source package
# A paragraph is left out if more than half of its runs of so many words were seen before.
RUN = 5


@dataclass(frozen=True)
class Document:
    text: str
    label: int  # index of its class


@dataclass(frozen=True)
class Corpus:
    """`fingerprint` is the same for the same classes, documents and split only."""

    classes: list[str]
    training: list[Document]
    test: list[Document]
    fingerprint: str


def read(folder: Path, training: int, test: int) -> Corpus:
    """The documents of FOLDER/CLASS/*.txt, as many as asked for, in a fixed split.

    The order is that of the texts' hashes: names of files and the system's order say nothing. Each
    class gives the same share to the test, and classes take turns until there are enough.

    Raises Problem where the folder is missing, has no or one class, too few documents, or a file
    that is empty or no text.
    """
    classes = read_classes(folder)
    share = test / (training + test)
    parts: tuple[list[list[Document]], ...] = ([], [])
    for label, (name, texts) in enumerate(classes.items()):
        cut = len(texts) - max(1, round(share * len(texts)))
        if cut < 1:
            raise Problem(f"corpus {folder / name}: has 1 document, expected at least 2")
        documents = [Document(text, label) for text in texts]
        parts[0].append(documents[:cut])
        parts[1].append(documents[cut:])
    chosen = [in_turn(part) for part in parts]
    for what, documents, count in zip(("train", "test"), chosen, (training, test), strict=True):
        if len(documents) < count:
            raise Problem(
                f"corpus {folder}: has {len(documents)} documents to {what}, --{what} asks for "
                f"{count}; give fewer, or a larger corpus"
            )
    used = chosen[0][:training], chosen[1][:test]
    return Corpus(list(classes), *used, fingerprint(list(classes), used))


def read_classes(folder: Path) -> dict[str, list[str]]:
    """Texts by class, each once, in the order of their hashes."""
    if not folder.is_dir():
        make = f"; type: python examples/classify/corpus.py {folder}"
        raise Problem(f"corpus {folder}: is no folder or is not there{make}")
    paths = {path.name: texts_in(path) for path in listed(folder, Path.is_dir)}
    filled = {name: found for name, found in paths.items() if found}
    if not filled:
        raise Problem(f"corpus {folder}: has no text, expected FOLDER/CLASS/*.txt")
    if len(filled) == 1:
        raise Problem(
            f"corpus {folder}: has one class, {next(iter(filled))}; expected at least two folders "
            "with .txt files"
        )
    classes = {}
    for name, found in filled.items():
        texts = {read_text(path) for path in found}
        classes[name] = sorted(texts, key=digest)
    return classes


def texts_in(folder: Path) -> list[Path]:
    return [path for path in listed(folder, Path.is_file) if path.suffix == ".txt"]


def listed(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if wanted(path))
    except OSError as error:
        raise Problem(f"{folder}: can't be read ({error.strerror}); mend or remove it") from error


def read_text(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise Problem(
            f"{path}: is no UTF-8 text ({first_line(error)}); mend or remove it"
        ) from error
    if not text:
        raise Problem(f"{path}: is empty; remove it")
    return text


def in_turn(parts: list[list[Document]]) -> list[Document]:
    """The first of each, the second of each, and so on."""
    rounds = itertools.zip_longest(*parts)
    return [document for turn in rounds for document in turn if document is not None]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(classes: list[str], parts: tuple[list[Document], ...]) -> str:
    content = [classes, [[(document.label, document.text) for document in part] for part in parts]]
    return digest(repr(content))


# What follows makes the corpus of Debian's descriptions.


def make(folder: Path) -> None:
    """Writes the corpus; raises Problem where it can't."""
    if folder.exists():
        raise Problem(f"{folder}: is there already; remove it, or give another name")
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    with tempfile.TemporaryDirectory() as lists:
        documents = packed(download(Path(lists)))
    try:
        for section, texts in documents.items():
            (aside / section).mkdir(parents=True)
            for index, text in enumerate(texts):
                (aside / section / f"{index:03}.txt").write_text(text, "utf-8")
        os.rename(aside, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise Problem(f"{folder}: can't be written ({error.strerror})") from error


def download(folder: Path) -> Path:
    """apt's lists of packages and of their English descriptions, in a folder of ours.

    The system's own lists stay as they are; they mostly come without long descriptions.
    """
    (folder / "partial").mkdir()
    options = [
        f"Dir::State::lists={folder}",
        f"Dir::Cache={folder}",
        "Acquire::Languages=en",
        "Acquire::GzipIndexes=false",
        "APT::Sandbox::User=root",  # or apt's own user can't read the folder
    ]
    command = ["apt-get", *(part for option in options for part in ("-o", option)), "update"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Problem(f"apt-get: can't be started ({error.strerror}); it needs Debian") from error
    if done.returncode or not list(folder.glob("*_Translation-en")):
        raise Problem(
            f"apt-get update: brought no English descriptions ({done.stderr.strip() or 'no error'})"
        )
    return folder


def packed(lists: Path) -> dict[str, list[str]]:
    """Up to DOCUMENTS texts of at least WORDS words by section, each of whole source packages.

    The order is that of a hash of the source's name. A source is in one document only, and
    paragraphs much like an earlier one are left out, so that no document of the test says what
    one of the training does.
    """
    documents: dict[str, list[str]] = {section: [] for section in SECTIONS}
    begun: defaultdict[str, list[str]] = defaultdict(list)
    seen: set[int] = set()
    sources = by_source(lists)
    for source in sorted(sources, key=digest):
        section, descriptions = sources[source]
        if section not in documents or len(documents[section]) == DOCUMENTS:
            continue
        text = "\n".join(paragraph for d in descriptions for paragraph in new_paragraphs(d, seen))
        if len(text.split()) < FEWEST:
            continue
        begun[section].append(text)
        if len(" ".join(begun[section]).split()) >= WORDS:
            documents[section].append("\n\n".join(begun.pop(section)) + "\n")
    count = sum(map(len, documents.values()))
    if count < EXPECTED:
        raise Problem(
            f"apt's lists: hold {count} documents of {WORDS} words, expected at least {EXPECTED}; "
            "is Debian's `main` among apt's sources?"
        )
    return documents


def by_source(lists: Path) -> dict[str, tuple[str, list[str]]]:
    """Of each source package the section with the most text, and its descriptions there.

    Sections of a package beside the program itself, such as libs or doc, don't count.
    """
    descriptions = {
        record["Description-md5"]: record["Description-en"]
        for path in sorted(lists.glob("*_Translation-en"))
        for record in records(path)
    }
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(lists.glob("*_Packages")):
        for record in records(path):
            section = record.get("Section", "")
            description = descriptions.get(record.get("Description-md5", ""))
            if section in SECTIONS and description is not None:
                source = record.get("Source", record["Package"]).split()[0]
                found[source][section].append(description)
    chosen = {}
    for source, sections in found.items():
        sizes = Counter({name: len("".join(texts)) for name, texts in sorted(sections.items())})
        section = sizes.most_common(1)[0][0]
        chosen[source] = (section, sections[section])
    return chosen


def records(path: Path) -> Iterator[dict[str, str]]:
    """Paragraphs of Debian's control files, as names and values."""
    for block in path.read_text("utf-8").split("\n\n"):
        fields = re.split(r"\n(?=\S)", block.strip("\n"))
        if fields != [""]:
            yield {name: value.strip() for name, _, value in (f.partition(":") for f in fields)}


def new_paragraphs(description: str, seen: set[int]) -> Iterator[str]:
    """Those of a description that are not much like what was seen; they count as seen then."""
    # The first line is a title.
    for paragraph in re.split(r"\n \.(?=\n)", description.replace("\n", "\n .\n", 1)):
        words = paragraph.split()
        runs = {" ".join(words[i : i + RUN]).lower() for i in range(max(1, len(words) - RUN + 1))}
        marks = {int(digest(run)[:16], 16) for run in runs}
        if words and 2 * len(marks & seen) <= len(marks):
            seen |= marks
            yield " ".join(words)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        sys.exit(f"usage: python examples/classify/corpus.py [FOLDER]   default: {DEFAULT}")
    folder = Path(arguments[0]) if arguments else DEFAULT
    try:
        make(folder)
    except Problem as problem:
        sys.exit(f"corpus.py: {problem}")
    print(f"{folder}: {len(SECTIONS) * DOCUMENTS} documents in {len(SECTIONS)} classes")


if __name__ == "__main__":
    main(sys.argv[1:])
