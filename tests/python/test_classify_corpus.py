"""examples/classify: the corpus, and bad data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from classify_example import WORDS, modules, options, write_texts

from smyrf.compare.problem import Problem

_, corpus, _, _, train, _ = modules()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), 24)


def test_the_split_is_that_of_the_texts(texts: Path, tmp_path: Path) -> None:
    first = corpus.read(texts, 24, 16)
    other = tmp_path / "other"
    for name in WORDS:
        (other / name).mkdir(parents=True)
        for path in texts.glob(f"{name}/*.txt"):
            shutil.copy(path, other / name / f"{100 - int(path.stem)}.txt")
    shutil.copy(next(texts.glob("fruit/*.txt")), other / "fruit" / "again.txt")
    assert corpus.read(other, 24, 16) == first
    seen = [{document.text for document in part} for part in (first.training, first.test)]
    assert [len(part) for part in seen] == [24, 16]
    assert not seen[0] & seen[1]
    for part in (first.training, first.test):
        assert np.bincount([document.label for document in part]).tolist() == [len(part) // 2] * 2
    assert {w for d in first.test if d.label == 1 for w in d.text.split()} >= {"hammer", "saw"}
    assert corpus.read(texts, 24, 15).fingerprint != first.fingerprint
    (other / "fruit" / "50.txt").write_text("another")
    assert corpus.read(other, 24, 16).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, r"is no folder or is not there; type: python examples/classify/corpus\.py"),
        ({}, "has no text, expected FOLDER/CLASS"),
        ({"notes.txt": b"text"}, "has no text, expected FOLDER/CLASS"),
        ({"a/1.txt": b"x", "a/2.txt": b"y", "b/notes": b"z"}, "has one class, a; expected at"),
        ({"a/1.txt": b"x", "a/2.txt": b"y", "b/1.txt": b" \n"}, r"b/1\.txt: is empty; remove it"),
        ({"a/1.txt": b"x", "b/1.txt": b"\xff\xfe\xfa"}, r"b/1\.txt: is no UTF-8 text"),
        ({"a/1.txt": b"x", "a/2.txt": b"y", "b/1.txt": b"z"}, "b: has 1 document, expected at"),
        (
            {f"{c}/{i}.txt": b"%d" % i for c in "ab" for i in range(3)},
            "has 4 documents to train, --train asks for 8; give fewer, or a larger corpus",
        ),
    ],
)
def test_bad_corpora_are_refused(tmp_path: Path, files: dict[str, bytes] | None, says: str) -> None:
    folder = tmp_path / "texts"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    with pytest.raises(Problem, match=says):
        corpus.read(folder, 8, 4)
    with pytest.raises(SystemExit, match=says):
        train.main(options(folder, Path("unused"), tmp_path, "--train", "8", "--test", "4"))


def test_what_is_no_file_is_no_text(texts: Path, tmp_path: Path) -> None:
    other = shutil.copytree(texts, tmp_path / "texts")
    os.mkfifo(other / "fruit" / "pipe.txt")
    assert corpus.read(other, 24, 16).fingerprint == corpus.read(texts, 24, 16).fingerprint


def write_lists(folder: Path) -> None:
    """apt's lists of 40 source packages in two sections, some of them in two versions."""
    packages, translations = [], []
    for index in range(40):
        section = "games" if index % 2 else "net"
        words = [f"{section}{index}x{i}" for i in range(30)]
        for version in ("", "-2") if index % 4 == 0 else ("",):
            name = f"p{index}{version}"
            summed = f"{name:0>32}"
            source = f"Source: p{index}{version} (1.0)\n" if index % 3 == 0 else ""
            packages.append(
                f"Package: lib{name}\n{source}Section: libs\nDescription: x\n"
                f"Description-md5: {summed}\n\n"
                f"Package: {name}\n{source}Section: {section}\nDescription: t\n"
                f"Description-md5: {summed}"
            )
            translations.append(
                f"Package: {name}\nDescription-md5: {summed}\nDescription-en: title {name}\n"
                f" {' '.join(words[:9])}\n {' '.join(words[9:])}\n .\n the end of {name}"
            )
    (folder / "a_Packages").write_text("\n\n".join(packages) + "\n\n")
    (folder / "a_Translation-en").write_text("\n\n".join(translations) + "\n\n")


def test_the_corpus_of_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path) -> Path:
        write_lists(folder)
        return folder

    monkeypatch.setattr(corpus, "download", download)
    monkeypatch.setattr(corpus, "SECTIONS", ("games", "net"))
    monkeypatch.setattr(corpus, "WORDS", 60)
    with pytest.raises(Problem, match="hold 20 documents of 60 words, expected at least 1000"):
        corpus.make(tmp_path / "made")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(corpus, "EXPECTED", 10)
    corpus.make(tmp_path / "made")
    by_section = {
        name: [path.read_text() for path in (tmp_path / "made" / name).glob("*.txt")]
        for name in ("games", "net")
    }
    assert {name: len(found) for name, found in by_section.items()} == {"games": 10, "net": 10}
    words = " ".join(text for found in by_section.values() for text in found).split()
    once = [word for word in words if "x" in word]
    assert len(once) == len(set(once)) == 40 * 30, "each description once, of one version"
    assert all(len(text.split()) >= 60 for found in by_section.values() for text in found)
    assert not any("games" in text for text in by_section["net"])
    with pytest.raises(Problem, match="is there already; remove it"):
        corpus.make(tmp_path / "made")


def test_without_apt_the_corpus_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"corpus\.py: apt-get: can't be started"):
        corpus.main([str(tmp_path / "made")])
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(SystemExit, match=r"brought no English descriptions \(E: no network\)"):
        corpus.main([str(tmp_path / "made")])
    with pytest.raises(SystemExit, match="usage"):
        corpus.main(["--help"])
