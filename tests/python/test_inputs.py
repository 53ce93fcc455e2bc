"""Hostile and real: what `smyrf compare` reads, and how it refuses what it can't use."""

from __future__ import annotations

import errno
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from smyrf.compare.inputs import MOST_TEXT, Images, Speech, Text, read_input
from smyrf.compare.models import find_model
from smyrf.compare.output_file import OutputFile, deliver
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


def test_a_part_of_a_wav_file_that_claims_too_much(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(400, np.int16))
    content = bytearray(path.read_bytes())
    content[16:20] = (100_000).to_bytes(4, "little")  # the size of the format's part
    path.write_bytes(content)
    with pytest.raises(Problem, match="can't be read as sound"):
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


def test_unknown_name_suggests_and_lists() -> None:
    with pytest.raises(Problem, match="did you mean devil") as caught:
        read_input("devli")
    assert "dict-devil" in str(caught.value)


def test_output_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    file = OutputFile(path, "--json")
    assert list(tmp_path.iterdir()) == [path]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Problem, match=r"result\.json: can't be written there \(No space left"):
            file.write(b"half")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(Problem, match="can't be written"):
        OutputFile(tmp_path / "no" / "x", "--json")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_nothing_half_written(name: str, tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from smyrf.compare.output_file import OutputFile, ending_cleanly
signal.signal(signal.{name}, signal.default_int_handler if "{name}" == "SIGINT" else signal.SIG_DFL)
path = Path({str(tmp_path / "result.json")!r})
os.fsync = lambda handle: os.kill(os.getpid(), signal.{name})
with ending_cleanly():
    OutputFile(path, "--json").write(b"half")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert ran.returncode in (128 + getattr(signal, name), -getattr(signal, name)), ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_or_closed_stdout_is_told_and_python_says_no_more() -> None:
    code = """
from smyrf.compare.output_file import deliver, print_bytes
import sys
sys.stderr.write("; ".join(deliver({"the table": lambda: print_bytes(b"x")})))
"""
    for how, says in [(">/dev/full", "No space left on device"), (">&-", "stdout is closed")]:
        command = ["sh", "-c", f'"$0" -c "$1" {how}', sys.executable, code]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.stderr == f"the table: can't be written ({says})"
        assert ran.returncode == 0


def test_each_output_is_delivered_for_itself() -> None:
    done = []

    def refuse() -> None:
        raise Problem("--json a: can't be written there")

    def fail() -> None:
        raise KeyError("font")

    def leave() -> None:
        raise BrokenPipeError

    outputs = {"json": refuse, "plot": fail, "sheet": lambda: done.append("sheet")}
    says = ["--json a: can't be written there", "plot: can't be made (KeyError: 'font')"]
    assert deliver(outputs) == says
    assert done == ["sheet"]
    with pytest.raises(BrokenPipeError):
        deliver({"table": leave, "sheet": lambda: done.append("more")})
    assert done == ["sheet", "more"]


def test_output_follows_links_and_keeps_the_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target.name)
    OutputFile(link, "--json").write(b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to("made.json")
    OutputFile(dangling, "--json").write(b"new")
    assert (tmp_path / "made.json").read_text() == "new"


def test_output_into_a_pipe_or_device_does_not_replace_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    OutputFile(pipe, "--json").write(b"new")
    reader.join(10)
    assert read == ["new"]
    assert pipe.is_fifo()
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    OutputFile(null, "--json").write(b"new")
    assert Path("/dev/null").is_char_device()
    for path, says in [(tmp_path, "is a folder"), (tmp_path / ("n" * 300), "can't be written")]:
        with pytest.raises(Problem, match=says):
            OutputFile(path, "--json")


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
