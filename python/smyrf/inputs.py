"""Finds and reads what a model is run on: text or speech by name or path, or noise."""

from __future__ import annotations

import gzip
import io
import os
import re
import shlex
import wave
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smyrf.models import InputKind, suggest
from smyrf.problem import Problem

SAMPLE_RATE = 16000
MOST_TEXT = 16 * 2**20  # bytes; a book has one million
Samples = npt.NDArray[np.float32]
GZIP = b"\x1f\x8b"
# How files begin that are sound but not wav.
OTHER_SOUND = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"FORM")


@dataclass(frozen=True)
class BuiltIn:
    """An input that a package of Debian carries."""

    path: Path
    package: str
    kind: InputKind
    says: str


BUILT_IN = {
    "devil": BuiltIn(
        Path("/usr/share/dictd/devil.dict.dz"),
        "dict-devil",
        "text",
        "The Devil's Dictionary, Ambrose Bierce 1911, public domain",
    ),
    "jargon": BuiltIn(
        Path("/usr/share/dictd/jargon.dict.dz"),
        "dict-jargon",
        "text",
        "the Jargon File, public domain",
    ),
    "librivox": BuiltIn(
        Path("/usr/share/pocketsphinx/test/data/librivox"),
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
class Noise:
    """What a generator makes images of: normal numbers cut at 2 and scaled by the truncation."""

    title: str = "seeded noise of truncation 0.4"
    count: int = 8
    truncation: float = 0.4
    seed: int = 0
    kind: InputKind = "noise"


Input = Text | Speech | Noise


def read_input(name: str) -> Input:
    """Text or speech by built-in name, or by the path of a file or a folder of wav files; `noise`.

    A file may be a pipe, such as /dev/stdin.

    Raises Problem if there is no such name or path, or if it can't be used: empty, not UTF-8,
    not 16-bit mono wav at 16 kHz, transcripts for some recordings only.
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
    elif not os.path.exists(name):  # Path.exists raises where a name is too long
        there = ", ".join(f"{n} (package {b.package})" for n, b in BUILT_IN.items())
        raise Problem(
            f"input {name or repr(name)}: no such name or file{suggest(name, list(BUILT_IN))}; "
            f"by name there are {there}; a text file, a wav file or a folder of them works too"
        )
    try:
        if path.is_dir():
            return _read_folder(title, path)
        # Opened once: a pipe has its beginning once.
        with path.open("rb") as file:
            raw = file.read(MOST_TEXT + 1)
            if raw.startswith(b"RIFF"):
                raw += file.read()
        if raw.startswith(b"RIFF"):
            said = _transcripts(path.parent, [path])
            return Speech(title, (Utterance(path, _samples(path, raw), said.get(path)),))
        if raw.startswith(OTHER_SOUND):
            raise Problem(f"{path}: is sound but not wav; {_how_to_convert(path)}")
        return Text(title, _text(path, raw))
    except OSError as error:
        raise Problem(f"{path}: can't be read ({error.strerror or error})") from error


def _text(path: Path, raw: bytes) -> str:
    """UTF-8 text, plain or packed by gzip or dictzip, from the first MOST_TEXT + 1 bytes."""
    if raw.startswith(GZIP) and len(raw) <= MOST_TEXT:
        try:
            with gzip.open(io.BytesIO(raw)) as stream:
                raw = stream.read(MOST_TEXT + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Problem(f"{path}: begins as gzip and is damaged ({error})") from error
    if len(raw) > MOST_TEXT:
        raise Problem(f"{path}: holds more than {MOST_TEXT >> 20} MiB of text, give a part of it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(
            f"{path}: is no text in UTF-8 (byte {error.start}); if it is text in another "
            f"encoding, convert it: iconv -f ENCODING -t UTF-8 {shlex.quote(str(path))}"
        ) from error
    if "\0" in text:
        raise Problem(f"{path}: holds zero bytes, so it is no text")
    if not text.strip():
        raise Problem(f"{path}: holds no text")
    return text


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        return _text(path, file.read(MOST_TEXT + 1))


def _samples(path: Path, content: bytes) -> Samples:
    """The samples of a wav file, which must be 16-bit PCM, mono, 16 kHz."""
    try:
        with wave.open(io.BytesIO(content), "rb") as file:
            given = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            promised = file.getnframes()
            raw = file.readframes(promised)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a part's size is wrong
        why = str(error) or "it ends too early"
        raise Problem(f"{path}: is no PCM wav file ({why}); {_how_to_convert(path)}") from error
    if given != (1, 16, SAMPLE_RATE):
        channels, bits, rate = given
        raise Problem(
            f"{path}: has {channels} channel{'s' * (channels != 1)} of {bits} bits at {rate} Hz, "
            f"expected 1 of 16 bits at {SAMPLE_RATE} Hz; {_how_to_convert(path)}"
        )
    if promised == 0:
        raise Problem(f"{path}: holds no sound")
    if len(raw) != 2 * promised:
        raise Problem(f"{path}: promises {promised} samples and holds {len(raw) // 2}")
    samples: Samples = np.frombuffer(raw, "<i2").astype(np.float32)
    samples /= 32768
    return samples


def _how_to_convert(path: Path) -> str:
    source, target = (shlex.quote(str(p)) for p in (path, path.with_suffix(".16k.wav")))
    return f"convert it: ffmpeg -i {source} -ac 1 -ar {SAMPLE_RATE} -c:a pcm_s16le {target}"


def _read_folder(title: str, folder: Path) -> Speech:
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".wav")
    if not paths:
        raise Problem(f"{folder}: is a folder without wav files")
    said = _transcripts(folder, paths)
    if said and len(said) < len(paths):
        lost = next(p for p in paths if p not in said)
        raise Problem(
            f"{folder}: {len(said)} of {len(paths)} recordings have a transcript; "
            f"add one for {lost.name} or remove the others"
        )
    return Speech(
        title, tuple(Utterance(p, _samples(p, p.read_bytes()), said.get(p)) for p in paths)
    )


def _transcripts(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """What was said in each recording: NAME.txt beside NAME.wav, or a line of `transcription`.

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
