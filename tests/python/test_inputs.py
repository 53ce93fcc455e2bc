"""Hostile and real: what `smyrf compare` reads, and how it refuses what it can't use."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import subprocess
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from smyrf.inputs import MOST_TEXT, SAMPLE_RATE, Speech, Text, read_input
from smyrf.models import find_model
from smyrf.output_file import OutputFile
from smyrf.problem import Problem


def write_wav(
    path: Path, samples: np.ndarray, channels: int = 1, bits: int = 16, rate: int = SAMPLE_RATE
) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
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
        (b"fLaC....", "not wav"),
        (b"RIFF\x00\x00", "is no PCM wav file"),
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
    with pytest.raises(Problem, match="is no PCM wav file"):
        read_input(str(path))


@pytest.mark.parametrize("name", ["", "n" * 300, "a/" + "n" * 300])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(Problem, match=r"^input .*no such name or file"):
        read_input(name)
    with pytest.raises(Problem, match=r"^model .*no such name or folder"):
        find_model(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 8}, "of 8 bits"),
        ({"channels": 2}, "2 channels"),
        ({"rate": 8000}, "at 8000 Hz"),
    ],
)
def test_other_wav_says_how_to_convert(tmp_path: Path, options: dict[str, int], says: str) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(400, np.int16), **options)
    with pytest.raises(Problem, match=says) as caught:
        read_input(str(path))
    assert "ffmpeg" in str(caught.value)


def test_empty_and_truncated_wav(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds no sound"):
        read_input(str(write_wav(tmp_path / "empty.wav", np.zeros(0, np.int16))))
    whole = write_wav(tmp_path / "whole.wav", np.ones(1000, np.int16))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(Problem, match="promises 1000 samples and holds 950"):
        read_input(str(whole))


def test_folder_needs_all_transcripts_or_none(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="without wav files"):
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
from smyrf.output_file import OutputFile, ending_cleanly
signal.signal(signal.{name}, signal.default_int_handler if "{name}" == "SIGINT" else signal.SIG_DFL)
path = Path({str(tmp_path / "result.json")!r})
os.fsync = lambda handle: os.kill(os.getpid(), signal.{name})
with ending_cleanly():
    OutputFile(path, "--json").write(b"half")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert ran.returncode in (128 + getattr(signal, name), -getattr(signal, name)), ran.stderr
    assert list(tmp_path.iterdir()) == []


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
