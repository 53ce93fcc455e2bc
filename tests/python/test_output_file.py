"""Files that `smyrf compare` writes: whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from smyrf.compare.output_file import OutputFile, deliver
from smyrf.compare.problem import Problem


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
