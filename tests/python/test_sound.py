"""Recordings as inputs of `smyrf compare`: their formats, and hostile files."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from smyrf.compare.inputs import Speech, read_input
from smyrf.compare.problem import Problem
from smyrf.compare.sound import SAMPLE_RATE


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """Without the library that reads it."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return path


def test_a_part_of_a_wav_file_that_claims_too_much(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(400, np.int16))
    content = bytearray(path.read_bytes())
    content[16:20] = (100_000).to_bytes(4, "little")  # the size of the format's part
    path.write_bytes(content)
    with pytest.raises(Problem, match="can't be read as sound"):
        read_input(str(path))


def speech_of(path: Path) -> Speech:
    given = read_input(str(path))
    assert isinstance(given, Speech)
    return given


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate) / 2


# What stands where sizes belong: in pipes of ffmpeg, of sox, of arecord, and nothing at all.
@pytest.mark.parametrize(("riff", "data"), [(2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000),
                                            (0x80000024, 0x80000000), (0, 0), (36, 0),
                                            (0, None)])  # fmt: skip
def test_wav_of_unknown_size(tmp_path: Path, riff: int, data: int | None) -> None:
    samples = np.arange(1000, dtype=np.int16) - 5
    path = write_wav(tmp_path / "a.wav", samples)
    content = bytearray(path.read_bytes())
    content[4:8] = riff.to_bytes(4, "little")
    if data is not None:
        content[40:44] = data.to_bytes(4, "little")
    path.write_bytes(content)
    np.testing.assert_array_equal(speech_of(path).utterances[0].samples, samples / 32768)


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_rf64_of_unknown_size(tmp_path: Path, size: int) -> None:
    samples = np.arange(1000, dtype=np.int16) - 5
    path = write_wav(tmp_path / "a.wav", samples)
    content = path.read_bytes()
    sizes = size.to_bytes(8, "little") * 2 + bytes(12)
    content = b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0" + sizes + content[12:]
    path.write_bytes(content.replace(b"data\xd0\x07\0\0", b"data\xff\xff\xff\xff"))
    np.testing.assert_array_equal(speech_of(path).utterances[0].samples, samples / 32768)


def test_wav_of_big_endian_numbers(tmp_path: Path) -> None:
    samples = np.arange(1000, dtype=np.int16) - 5
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, "PCM_16", "BIG")
    assert (tmp_path / "a.wav").read_bytes().startswith(b"RIFX")
    found = speech_of(tmp_path / "a.wav").utterances[0].samples
    np.testing.assert_array_equal(found, samples / 32768)


def test_wav_of_unknown_size_behind_words_that_look_like_parts(tmp_path: Path) -> None:
    samples = np.frombuffer(b"    " + b"\x10\x7f" * 1000, np.int16)
    path = write_wav(tmp_path / "a.wav", samples)
    content = bytearray(path.read_bytes())
    content[40:44] = bytes(4)
    content[12:12] = b"bext" + (258).to_bytes(4, "little") + b"my data".ljust(258, b"\0")
    path.write_bytes(content)
    np.testing.assert_array_equal(speech_of(path).utterances[0].samples, samples / 32768)


@pytest.mark.parametrize(
    ("form", "subtype", "rate", "channels"),
    [
        ("WAVEX", "PCM_16", 16000, 1),
        ("WAVEX", "PCM_24", 48000, 2),
        ("WAV", "PCM_U8", 8000, 1),
        ("WAV", "FLOAT", 44100, 2),
        ("WAV", "ULAW", 11025, 1),
        ("RF64", "PCM_16", 22050, 1),
        ("FLAC", "PCM_16", 44100, 6),
        ("OGG", "VORBIS", 48000, 2),
        ("OGG", "OPUS", 48000, 1),
        ("MP3", "MPEG_LAYER_III", 44100, 2),
        ("AIFF", "PCM_16", 96000, 1),
        ("W64", "PCM_16", 16000, 1),
    ],
)
def test_other_formats_become_mono_at_16_khz(
    tmp_path: Path, form: str, subtype: str, rate: int, channels: int
) -> None:
    path = tmp_path / "a.sound"
    soundfile.write(path, np.repeat(tone(rate)[:, None], channels, 1), rate, subtype, format=form)
    given = speech_of(path)
    samples = given.utterances[0].samples
    assert samples.dtype == np.float32
    # Lossy formats pad by a frame or so.
    assert len(samples) == pytest.approx(SAMPLE_RATE / 2, abs=1300)
    middle = slice(2000, 6000)
    spectrum = np.abs(np.fft.rfft(samples[middle]))
    assert np.argmax(spectrum) == 440 * 4000 / SAMPLE_RATE
    assert samples[middle].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    plain = (rate, channels) == (SAMPLE_RATE, 1)
    assert plain or f"({channels} channel{'s' * (channels != 1)} at {rate} Hz" in given.title
    assert "made mono" not in given.title or not plain


def test_channels_are_averaged_and_a_folder_holds_all_formats(tmp_path: Path) -> None:
    both = np.stack([np.full(100, 0.5), np.full(100, 0.25)], 1)
    soundfile.write(tmp_path / "a.flac", both, SAMPLE_RATE)
    soundfile.write(tmp_path / "b.wav", both[:, 0], SAMPLE_RATE)
    given = speech_of(tmp_path)
    assert [u.path.name for u in given.utterances] == ["a.flac", "b.wav"]
    np.testing.assert_array_equal(given.utterances[0].samples, np.float32(0.375))
    np.testing.assert_array_equal(given.utterances[1].samples, np.float32(0.5))


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([0, 0, np.nan], "sample 2 is NaN or infinite"),
        ([0, -np.inf, 0], "sample 1 is NaN or infinite"),
        ([0, 32767, 0], r"float samples up to 3\.277e\+04, expected -1 to 1"),
    ],
)
def test_floats_that_are_no_sound(tmp_path: Path, samples: list[float], says: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array(samples, np.float32), SAMPLE_RATE, "FLOAT")
    with pytest.raises(Problem, match=says):
        read_input(str(path))


@pytest.mark.parametrize(("rate", "says"), [(0, "can't be read"), (1, "1 samples a second"),
                                            (10**6, "expected 1000 to 768000")])  # fmt: skip
def test_rates_of_a_damaged_header(tmp_path: Path, rate: int, says: str) -> None:
    path = write_wav(tmp_path / "a.wav", np.ones(400, np.int16))
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(Problem, match=says):
        read_input(str(path))


@pytest.mark.parametrize("form", ["FLAC", "AIFF", "MP3", "RF64"])
def test_other_formats_that_are_cut_off(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.sound"
    soundfile.write(path, tone(16000, 3), 16000, format=form)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(Problem, match="cut off"):
        read_input(str(path))


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(16000), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = b"\0" * 4  # the number of samples, in 36 bits
    path.write_bytes(content)
    assert len(speech_of(path).utterances[0].samples) == 8000


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_without_the_packages_of_sound_it_names_them(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = write_wav(tmp_path / "a.wav", np.ones(10, np.int16))
    with pytest.raises(Problem, match=f"{package} is not installed, and sound needs it"):
        read_input(str(path))


def test_empty_and_truncated_wav(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds no sound"):
        read_input(str(write_wav(tmp_path / "empty.wav", np.zeros(0, np.int16))))
    whole = write_wav(tmp_path / "whole.wav", np.ones(1000, np.int16))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(Problem, match="promises 1000 samples and holds 950"):
        read_input(str(whole))


def test_folder_needs_all_transcripts_or_none(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="without recordings"):
        read_input(str(tmp_path))
    for name in ("a", "b"):
        write_wav(tmp_path / f"{name}.wav", np.ones(100, np.int16))
    speech = read_input(str(tmp_path))
    assert isinstance(speech, Speech)
    assert speech.transcript is None
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(Problem, match=r"add one for b\.wav"):
        read_input(str(tmp_path))
    (tmp_path / "b.txt").write_text("world")
    speech = read_input(str(tmp_path))
    assert isinstance(speech, Speech)
    assert speech.transcript == "hello world"
