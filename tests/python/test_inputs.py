"""Hostile and real: what `smyrf compare` reads, and how it refuses what it can't use."""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_sound import write_wav

from smyrf.compare.inputs import MOST_TEXT, Images, Speech, Text, read_input
from smyrf.compare.models import find_model
from smyrf.compare.problem import Problem
from smyrf.compare.sound import SAMPLE_RATE


def test_devil_is_a_long_text() -> None:
    given = read_input("devil")
    assert isinstance(given, Text)
    assert len(given.text) > 300_000
    assert "Ambrose Bierce" in given.title


def test_librivox_is_25_seconds_with_a_transcript() -> None:
    given = read_input("librivox")
    assert isinstance(given, Speech)
    seconds = sum(len(u.samples) for u in given.utterances) / SAMPLE_RATE
    assert 20 < seconds < 30
    assert given.transcript is not None
    assert len(given.transcript.split()) > 50
    assert max(float(np.abs(u.samples).max()) for u in given.utterances) <= 1.0


def test_plain_and_packed_text_read_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_text("naïve text\n", "utf-8")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = read_input(str(plain)), read_input(str(packed))
    assert isinstance(first, Text)
    assert isinstance(second, Text)
    assert first.text == second.text == "naïve text\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no text"),
        (b"  \n\t", "holds no text"),
        (b"\xff\xfe\x00\x80binary", "is no text in UTF-8"),
        (b"a\0b", "zero bytes"),
        (gzip.compress(b"long enough to be cut " * 50, mtime=0)[:-20], "damaged"),
        (b"fLaC\0...", "can't be read as sound"),
        (b"RIFF\x00\x00", "can't be read as sound"),
        (b"caf\xe9 in Latin-1", r"no text in UTF-8 \(byte 3 is 0xe9\).*iconv -f LATIN1"),
        ("in UTF-16".encode("utf-16-le"), "as text in UTF-16 does.*iconv -f UTF-16LE"),
        ("in UTF-16".encode("utf-16-be"), "as text in UTF-16 does.*iconv -f UTF-16BE"),
        ("in UTF-16".encode("utf-16"), "in UTF-16, if it is text; convert it: iconv -f UTF-16 "),
        ("in UTF-32".encode("utf-32"), "in UTF-32, if it is text"),
        (b"\1\2\3\4" * 20, "control characters"),
        (b"%PDF-1.7\n\xe2\xe3", r"is a PDF; smyrf reads plain text \(UTF-8, .*pdftotext"),
        (gzip.compress(b"%PDF-1.7\n"), "is a PDF"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is a damaged or unknown picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a damaged or unknown picture"),
        (b"\0\0\0\x20ftypM4A \0\0", "is an MPEG-4 file.*ffmpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "is a damaged or unknown picture"),
        (b"{\\rtf1\\ansi", "is rich text"),
        (b"\x1aE\xdf\xa3", "is a Matroska or WebM video"),
        (b"\x7fELF\2\1\1", "is a program"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(Problem, match=says):
        read_input(str(path))


def test_input_from_a_pipe_is_whole(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "a.wav", np.arange(1000, dtype=np.int16)).read_bytes()
    text = "first line\n" + "more words\n" * 10_000  # more than a pipe holds
    for number, content in enumerate([text.encode(), gzip.compress(text.encode()), wav]):
        pipe = tmp_path / str(number)
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        given = read_input(str(pipe))
        writer.join(10)
        if isinstance(given, Text):
            assert given.text == text
        else:
            assert len(given.utterances[0].samples) == 1000


def test_too_much_text_is_refused_plain_or_packed(tmp_path: Path) -> None:
    path = tmp_path / "much.txt"
    for content in (b"a" * (MOST_TEXT + 1), gzip.compress(b"a" * (MOST_TEXT + 1))):
        path.write_bytes(content)
        with pytest.raises(Problem, match="more than 16 MiB"):
            read_input(str(path))


def test_archives_and_what_is_in_them(tmp_path: Path) -> None:
    for inside, says in [("a.txt", "a zip archive"), ("word/document.xml", "a Word document")]:
        path = tmp_path / "archive"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(inside, "text")
        with pytest.raises(Problem, match=f"archive: is {says}"):
            read_input(str(path))


@pytest.mark.parametrize("begins", ["caffeine", "RIFF raff", "ID3 tags", "FORM 10-K of", "GIF8ed",
                                    "PK", "BZh is", "GGUF is a format"])  # fmt: skip
def test_text_that_begins_as_other_files_do(tmp_path: Path, begins: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{begins}, and so on, to an end; with %PDF-1.7 in it.")
    assert isinstance(read_input(str(path)), Text)


def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to("gone.txt")
    with pytest.raises(Problem, match=r"link\.txt: is a link to gone\.txt, and that is not there"):
        read_input(str(link))
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(Problem, match=r"loop: can't be read \(Too many levels"):
        read_input(str(loop))
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)
    server.bind("socket")
    with pytest.raises(Problem, match="socket: can't be read"):
        read_input("socket")
    server.close()
    (tmp_path / "folder" / "a.wav").mkdir(parents=True)
    with pytest.raises(Problem, match=r"a\.wav: can't be read \(Is a directory"):
        read_input("folder")

    def refuse(path: object, *more: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(Problem, match=r"secret\.txt: can't be read \(Permission denied"):
        read_input("secret.txt")


@pytest.mark.parametrize("name", ["", "n" * 300, "a/" + "n" * 300])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(Problem, match=r"^input .*no such name or file"):
        read_input(name)
    with pytest.raises(Problem, match=r"^model .*no such name or folder"):
        find_model(name)


def test_stdin_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin: Any = io.TextIOWrapper(io.BytesIO(b"words from a pipe"))
    monkeypatch.setattr(sys, "stdin", stdin)
    given = read_input("-")
    assert isinstance(given, Text)
    assert given.text == "words from a pipe"
    wav = write_wav(tmp_path / "a.wav", np.arange(10, dtype=np.int16)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(wav)))
    assert isinstance(read_input("-"), Speech)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Problem, match="stdin is closed"):
        read_input("-")


def test_unknown_name_suggests_and_lists() -> None:
    with pytest.raises(Problem, match="did you mean devil") as caught:
        read_input("devli")
    assert "dict-devil" in str(caught.value)


def test_pictures_of_more_than_8_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(shades).save(tmp_path / "16.png")
    given = read_input(str(tmp_path / "16.png"))
    assert isinstance(given, Images)
    np.testing.assert_array_equal(np.asarray(given.pictures[0])[..., 0], shades // 257)
    for kind in (np.int32, np.float32):
        Image.fromarray(shades.astype(kind)).save(tmp_path / "32.tif")
        with pytest.raises(Problem, match="pixels of 32 bits"):
            read_input(str(tmp_path / "32.tif"))
