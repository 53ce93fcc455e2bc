"""Recordings of every format that libsndfile reads, as what Whisper hears: mono at 16 kHz."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smyrf.compare.problem import Problem, not_installed

SAMPLE_RATE = 16000
MOST_BYTES = 2**30
MOST_HOURS = 4
RATES = (1000, 768_000)  # Hz; beyond them a header is damaged
LOUDEST = 16  # a float sample above it was meant as an integer
BLOCK = 2**18  # samples read at once
# Programs that write into a pipe can't come back to write sizes, and promise 0 or about 2 or 4 GiB.
UNKNOWN = 0x7F000000
NAMES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf",
         ".w64", ".rf64")  # fmt: skip

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """float32 samples in -1 to 1 at 16 kHz, and `made_from`: what they were before, if another."""

    samples: Samples
    made_from: str | None


def is_sound(raw: bytes) -> bool:
    """Whether a file that begins so is of a format that `read_sound` reads."""
    if raw[:4] in (b"RIFF", b"RF64", b"RIFX"):
        return raw[8:12] in (b"WAVE", b"")
    if raw[:4] == b"FORM":
        return raw[8:12] in (b"AIFF", b"AIFC")
    # Names that text may begin with count with the bytes that follow them, which text has not.
    if raw.startswith((b"fLaC\0", b"OggS\0", b".snd\0", b"caff\0", b"riff\x2e\x91\xcf\x11")):
        return True
    if raw[:3] == b"ID3":
        return raw[3:4] < b"\x10"
    # A frame of MP3 without a header: eleven ones, any version but the reserved one, layer III.
    return len(raw) > 1 and raw[0] == 0xFF and raw[1] & 0xE6 == 0xE2 and raw[1] & 0x18 != 0x08


def read_sound(path: Path, content: bytes) -> Sound:
    """The recording in a file's whole content; channels are averaged, other rates resampled.

    Raises Problem where it can't be read, is cut off, holds nothing, or holds what is no sound.
    """
    try:
        import soundfile
        import soxr
    except ModuleNotFoundError as error:
        raise Problem(not_installed(error, "sound")) from error
    except OSError as error:  # a wheel of soundfile for every system, whose library comes apart
        raise Problem(f"soundfile finds no libsndfile ({error}); install it") from error

    class Once(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False  # it would seek after each read, which FLAC of unknown length can't

    try:
        with Once(io.BytesIO(_with_size(content))) as file:
            rate, channels = file.samplerate, file.channels
            if not RATES[0] <= rate <= RATES[1]:
                raise Problem(
                    f"{path}: says {rate} samples a second, expected {RATES[0]} to {RATES[1]}"
                )
            resampler = None
            if rate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            parts, count = [], 0
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                _check(path, block, count, file.subtype)
                count += len(block)
                if count > MOST_HOURS * 3600 * rate:
                    raise Problem(f"{path}: is longer than {MOST_HOURS} hours, give a part of it")
                mono = block[:, 0] if channels == 1 else block.mean(axis=1, dtype=np.float32)
                parts.append(mono if resampler is None else resampler.resample_chunk(mono))
            _check_length(path, file, count)
            if resampler is not None:
                parts.append(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    except (soundfile.LibsndfileError, ValueError) as error:
        why = getattr(error, "error_string", str(error)).rstrip(".")
        raise Problem(
            f"{path}: can't be read as sound, it is damaged or cut off ({why}); "
            f"{how_to_convert(path)}"
        ) from error
    samples = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(samples):
        raise Problem(f"{path}: holds no sound")
    if (rate, channels) == (SAMPLE_RATE, 1):
        return Sound(samples, None)
    return Sound(samples, f"{channels} channel{'s' * (channels != 1)} at {rate} Hz")


def how_to_convert(path: Path) -> str:
    """The command that makes a file which `read_sound` reads."""
    source, target = (shlex.quote(str(p)) for p in (path, path.with_suffix(".16k.wav")))
    return f"convert it: ffmpeg -i {source} -ac 1 -ar {SAMPLE_RATE} -c:a pcm_s16le {target}"


def _with_size(content: bytes) -> bytes:
    """A wav file whose data have the size 0 in the header, and follow, gets one that is unknown.

    libsndfile knows the other sizes that stand for an unknown one, but not those of RF64.
    """
    if content[:4] not in (b"RIFF", b"RF64"):
        return content
    at = 12
    while content[at : at + 4] != b"data":
        if at + 8 > len(content):
            return content
        size = _number(content, at + 4, 4)
        at += 8 + size + size % 2
    if content[:4] == b"RF64" and content[12:16] == b"ds64":
        if _number(content, 28, 8) not in (0, 2**64 - 1):
            return content
        return b"RIFF\xff\xff\xff\xffWAVEJUNK" + content[16:]
    # Another part may follow data that are really empty: its name in ASCII, and its size.
    follows = re.match(rb"[A-Za-z0-9_ ]{4}", content[at + 8 : at + 12])
    if content[at + 4 : at + 8] != b"\0\0\0\0" or (
        follows and _number(content, at + 12, 4) <= len(content) - at - 16
    ):
        return content
    return content[: at + 4] + b"\xff" * 4 + content[at + 8 :]


def _number(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "little")


def _check(path: Path, block: Samples, before: int, subtype: str) -> None:
    """Only formats of floats can hold numbers that are none, or of another scale."""
    if subtype not in ("FLOAT", "DOUBLE"):
        return
    sizes = np.abs(block).max(axis=1)
    if not np.isfinite(sizes).all():
        place = before + int(np.argmin(np.isfinite(sizes)))
        raise Problem(f"{path}: sample {place} is NaN or infinite; make the recording again")
    if sizes.max() > LOUDEST:
        raise Problem(
            f"{path}: holds float samples up to {sizes.max():.4g}, expected -1 to 1; divide them"
        )


def _check_length(path: Path, file: Any, count: int) -> None:
    """Raises Problem where the header promises more samples than were read."""
    promised = file.frames if file.frames < 2**60 else count
    parts = r"(?:data|SSND|Data Size|riff|Riff size)"
    for size, there in re.findall(
        rf"^ *{parts} *: (\d+) \(should be (\d+)\)", file.extra_info, re.M
    ):
        if int(there) < int(size) < UNKNOWN:
            promised = max(promised, count * int(size) // max(1, int(there)), count + 1)
    if count < promised:
        raise Problem(f"{path}: is cut off, it promises {promised} samples and holds {count}")
