"""Finds and reads what a model is run on: text, speech or images by name or path, or noise."""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import os
import re
import shlex
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from smyrf.compare.debian import file_of
from smyrf.compare.file_kind import kind_of, refusal
from smyrf.compare.kinds import InputKind
from smyrf.compare.models import suggest
from smyrf.compare.problem import Problem, first_line
from smyrf.compare.sound import MOST_BYTES, NAMES, Samples, Sound, is_sound, read_sound

STDIN = "-"
MOST_TEXT = 16 * 2**20  # bytes; a book has one million
GZIP = b"\x1f\x8b"
# What counts in a folder.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp")
TEXTS = (".txt", ".md", ".rst", ".text", ".gz", ".dz")
# How text begins that says which encoding it has, and is not UTF-8. The longer ones first.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Control characters that no text has; it has tabs, ends of lines and pages, and colours (escape).
CONTROL = re.compile("[\x01-\x07\x0e-\x1a\x1c-\x1f\x7f]")


@dataclass(frozen=True)
class BuiltIn:
    """An input that a package of Debian carries."""

    path: Path
    package: str
    kind: InputKind
    says: str


BUILT_IN = {
    "devil": BuiltIn(
        file_of("usr/share/dictd/devil.dict.dz"),
        "dict-devil",
        "text",
        "The Devil's Dictionary, Ambrose Bierce 1911, public domain",
    ),
    "jargon": BuiltIn(
        file_of("usr/share/dictd/jargon.dict.dz"),
        "dict-jargon",
        "text",
        "the Jargon File, public domain",
    ),
    "librivox": BuiltIn(
        file_of("usr/share/pocketsphinx/test/data/librivox"),
        "pocketsphinx-testdata",
        "speech",
        "25 seconds of Sense and Sensibility read for LibriVox, with what was said",
    ),
}


@dataclass(frozen=True)
class Utterance:
    """One recording: float32 samples in -1 to 1 at 16 kHz, and what was said if known."""

    path: Path
    samples: Samples
    transcript: str | None


@dataclass(frozen=True)
class Text:
    """Text to cut into documents."""

    title: str
    text: str
    kind: InputKind = "text"


@dataclass(frozen=True)
class Speech:
    """Recordings in the order they were spoken; all have a transcript or none has."""

    title: str
    utterances: tuple[Utterance, ...]
    kind: InputKind = "speech"

    @property
    def transcript(self) -> str | None:
        """What was said from first to last, None if unknown."""
        said = [u.transcript for u in self.utterances if u.transcript is not None]
        return " ".join(said) if said else None


@dataclass(frozen=True)
class Images:
    """Images as Pillow has them, upright."""

    title: str
    pictures: tuple[Any, ...]
    kind: InputKind = "images"


@dataclass(frozen=True)
class Noise:
    """What a generator makes images of: normal numbers cut at 2 and scaled by the truncation."""

    title: str = "seeded noise of truncation 0.4"
    count: int = 8
    truncation: float = 0.4
    seed: int = 0
    kind: InputKind = "noise"


Input = Text | Speech | Images | Noise


def read_inputs(names: Sequence[str]) -> Input:
    """Several inputs of one kind as one, in the order given; see `read_input`.

    Raises Problem where they are of several kinds, or only some recordings have a transcript.
    """
    found = [read_input(name) for name in names]
    if len(found) == 1:
        return found[0]
    kinds = {one.kind for one in found}
    if len(kinds) > 1 or "noise" in kinds:
        given = ", ".join(f"{name} is {one.kind}" for name, one in zip(names, found, strict=True))
        raise Problem(f"{given}; give inputs of one kind")
    title = f"{len(found)} inputs from {names[0]} on"
    if isinstance(found[0], Text):
        return Text(title, "\n\n".join(one.text for one in found if isinstance(one, Text)))
    if isinstance(found[0], Images):
        pictures = [p for one in found if isinstance(one, Images) for p in one.pictures]
        return Images(title, tuple(pictures))
    spoken = [u for one in found if isinstance(one, Speech) for u in one.utterances]
    known = [u for u in spoken if u.transcript is not None]
    if known and len(known) < len(spoken):
        lost = next(u for u in spoken if u.transcript is None)
        raise Problem(
            f"{len(known)} of {len(spoken)} recordings have a transcript; add one for {lost.path} "
            "or remove the others"
        )
    return Speech(title, tuple(spoken))


def read_input(name: str) -> Input:
    """Text, speech or images by built-in name, by the path of a file or a folder of them, or from
    stdin (`-`); `noise`.

    A file may be a pipe, such as /dev/stdin.

    Raises Problem if there is no such name or path, or if it can't be used: empty, neither UTF-8
    nor sound nor an image, transcripts for some recordings only.
    """
    if name == "noise":
        return Noise()
    title, path = name, Path(name)
    if name in BUILT_IN:
        built_in = BUILT_IN[name]
        title, path = built_in.says, built_in.path
        if not path.exists():
            raise Problem(
                f"input {name}: {path} is not there, type: sudo apt install {built_in.package}"
            )
    try:
        if name == STDIN:
            if sys.stdin is None:
                raise Problem("input -: stdin is closed; give it a pipe or a file")
            return _read_file("stdin", Path("stdin"), sys.stdin.buffer, {})
        _check_there(name, path)
        if path.is_dir():
            return _read_folder(title, path)
        # Opened once: a pipe has its beginning once.
        with path.open("rb") as file:
            return _read_file(title, path, file, None)
    except OSError as error:
        place = error.filename or path  # in a folder it may be a file of it
        raise Problem(f"{place}: can't be read ({error.strerror or error})") from error


def _check_there(name: str, path: Path) -> None:
    """Raises Problem where there is nothing of the name, OSError where that can't be known."""
    try:
        os.stat(path if name else "")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if os.path.islink(name):
            raise Problem(
                f"{name}: is a link to {os.readlink(name)}, and that is not there"
            ) from error
        there = ", ".join(f"{n} (package {b.package})" for n, b in BUILT_IN.items())
        raise Problem(
            f"input {name or repr(name)}: no such name or file{suggest(name, list(BUILT_IN))}; "
            f"by name there are {there}; a text, recording, image or folder of them works too"
        ) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise Problem(f"input {name}: no such name or file; it is too long for one") from error


def _read_file(
    title: str, path: Path, file: BinaryIO, said: dict[Path, str] | None
) -> Text | Speech | Images:
    """Text, a recording or an image, whichever it is; `said` None: what was said is looked for
    beside."""
    raw = file.read(MOST_TEXT + 1)
    if (kind := kind_of(raw)) is not None and kind.is_picture:
        return Images(title, (_picture(path, raw + file.read(MOST_BYTES)),))
    if not is_sound(raw):
        return Text(title, _text(path, raw))
    raw += file.read(MOST_BYTES)
    if said is None:
        said = _transcripts(path.parent, [path])
    return _speech(title, {path: _sound(path, raw)}, said)


def _picture(path: Path, raw: bytes) -> Any:
    """The image, upright as its camera says; raises Problem where it can't be read."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise Problem(
            f"{error.name} is not installed, and images need it; type: pip install pillow"
        ) from error
    try:
        opened = Image.open(io.BytesIO(raw))
        picture = ImageOps.exif_transpose(opened)
        # Pillow would cut at 255 what has more than 8 bits.
        if picture.mode.startswith("I;16") or (picture.mode, opened.format) == ("I", "PNG"):
            picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise Problem(
                f"{path}: has pixels of 32 bits, and which of them is white is not known; save it "
                "with 8 or 16 bits"
            )
        return picture.convert("RGB")
    except Problem:
        raise
    except Exception as error:  # each format's reader raises exceptions of its own
        raise Problem(f"{path}: is a damaged or unknown picture ({first_line(error)})") from error


def _sound(path: Path, raw: bytes) -> Sound:
    """A recording, where nothing else will do."""
    if (kind := kind_of(raw)) is not None:
        raise Problem(refusal(path, kind))
    if len(raw) > MOST_BYTES:
        raise Problem(f"{path}: holds more than {MOST_BYTES >> 20} MiB, give a part of it")
    return read_sound(path, raw)


def _speech(title: str, sounds: dict[Path, Sound], said: dict[Path, str]) -> Speech:
    """Says in the title what the recordings were before, where that is one thing or several."""
    before = {sound.made_from for sound in sounds.values()} - {None}
    if before:
        what = before.pop() if len(before) == 1 else "several rates or channels"
        title = f"{title} ({what}, made mono at 16000 Hz)"
    return Speech(
        title, tuple(Utterance(p, sound.samples, said.get(p)) for p, sound in sounds.items())
    )


def _text(path: Path, raw: bytes) -> str:
    """UTF-8 text, plain or packed by gzip or dictzip, from the first MOST_TEXT + 1 bytes."""
    if raw.startswith(GZIP):
        try:
            with gzip.open(io.BytesIO(raw)) as stream:
                raw = stream.read(MOST_TEXT + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if len(raw) > MOST_TEXT:
                raise Problem(_too_much(path)) from error
            raise Problem(f"{path}: begins as gzip and is damaged ({error})") from error
        if is_sound(raw):
            raise Problem(f"{path}: is sound packed by gzip; unpack it first")
    if (kind := kind_of(raw)) is not None:
        raise Problem(refusal(path, kind))
    _check_encoding(path, raw)
    if len(raw) > MOST_TEXT:
        raise Problem(_too_much(path))
    text = raw.decode("utf-8-sig")
    if not text.strip():
        raise Problem(f"{path}: holds no text")
    if len(CONTROL.findall(text)) > len(text) / 20:
        raise Problem(f"{path}: holds control characters, so it is no text")
    return text


def _too_much(path: Path) -> str:
    return f"{path}: holds more than {MOST_TEXT >> 20} MiB of text, give a part of it"


def _check_encoding(path: Path, raw: bytes) -> None:
    """Raises Problem where it is not UTF-8, with the encoding if it can be told."""
    convert = f"iconv -f {{}} -t UTF-8 {shlex.quote(str(path))} > text.txt"
    for mark, encoding in MARKS.items():
        if raw.startswith(mark):
            raise Problem(
                f"{path}: is no text in UTF-8 but in {encoding}, if it is text; convert it: "
                f"{convert.format(encoding)}"
            )
    if b"\0" in raw:
        halves = [raw[start::2].count(0) / max(1, len(raw) // 2) for start in (0, 1)]
        if max(halves) > 0.4 and min(halves) < 0.05:
            encoding = "UTF-16LE" if halves[1] > halves[0] else "UTF-16BE"
            raise Problem(
                f"{path}: holds zero bytes as text in UTF-16 does, expected UTF-8; convert it: "
                f"{convert.format(encoding)}"
            )
        raise Problem(f"{path}: holds zero bytes, so it is no text")
    try:
        # What is cut off at the end may end inside a letter.
        codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) <= MOST_TEXT)
    except UnicodeDecodeError as error:
        raise Problem(
            f"{path}: is no text in UTF-8 (byte {error.start} is {raw[error.start]:#x}); if it is "
            f"text in another encoding, such as LATIN1, convert it: {convert.format('LATIN1')}"
        ) from error


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        return _text(path, file.read(MOST_TEXT + 1))


def _read_folder(title: str, folder: Path) -> Input:
    """The recordings of a folder if it has any, else its images, else its texts."""
    files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    recordings = [path for path in files if path.suffix.lower() in NAMES]
    if recordings:
        return _read_recordings(title, folder, recordings)
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if pictures:
        found = tuple(_picture(path, path.read_bytes()) for path in pictures)
        return Images(f"{title} ({len(found)} images)", found)
    texts = [path for path in files if path.suffix.lower() in TEXTS]
    if not texts:
        raise Problem(
            f"{folder}: is a folder without recordings ({' '.join(NAMES)}), images "
            f"({' '.join(PICTURES)}) or texts ({' '.join(TEXTS)})"
        )
    read = [_read_text(path) for path in texts]
    if sum(map(len, read)) > MOST_TEXT:
        raise Problem(_too_much(folder))
    return Text(f"{title} ({len(texts)} texts)", "\n\n".join(read))


def _read_recordings(title: str, folder: Path, paths: list[Path]) -> Speech:
    said = _transcripts(folder, paths)
    if said and len(said) < len(paths):
        lost = next(p for p in paths if p not in said)
        raise Problem(
            f"{folder}: {len(said)} of {len(paths)} recordings have a transcript; "
            f"add one for {lost.name} or remove the others"
        )
    return _speech(title, {path: _sound(path, path.read_bytes()) for path in paths}, said)


def _transcripts(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """What was said in each recording: NAME.txt beside it, or a line of `transcription`.

    A line of `transcription` is `<s> the words </s> (NAME)`, as speech test sets have it.
    """
    listed: dict[str, str] = {}
    listing = folder / "transcription"
    if listing.is_file():
        line_form = re.compile(r"(?:<s>)?(?P<said>[^<>]*)(?:</s>)?\s*\((?P<name>[^()]+)\)")
        for number, line in enumerate(_read_text(listing).splitlines(), 1):
            if line.strip():
                match = line_form.fullmatch(line.strip())
                if match is None:
                    raise Problem(f"{listing}: line {number} is not `<s> words </s> (name)`")
                listed[match["name"]] = match["said"].strip()
    said = {}
    for path in paths:
        beside = path.with_suffix(".txt")
        if beside.is_file():
            said[path] = _read_text(beside).strip()
        elif path.stem in listed:
            said[path] = listed[path.stem]
    return said
