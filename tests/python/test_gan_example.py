"""examples/gan: exact resumption after a kill, and bad data. Small networks on noise as images."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "gan"
sys.path.insert(0, str(EXAMPLE))

import losses  # noqa: E402
import table  # noqa: E402
import train  # noqa: E402
from checkpoint import load  # noqa: E402
from images import Crops  # noqa: E402
from networks import Discriminator, Generator, Shape, attention_by  # noqa: E402

from smyrf.compare.problem import Problem  # noqa: E402

METHODS = ("sdpa", "explicit", "dense", "lsh", "tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(3)
    for index in range(3):
        pixels = random.integers(0, 256, (40, 70 + index, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.png")
    return path


def options(folder: Path, out: Path, method: str, steps: int, **more: Any) -> list[str]:
    given = {"size": 32, "attention": 16, "width": 8, "batch": 2, "every": 2, "threads": 1, **more}
    named = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [str(folder), "--out", str(out), "--method", method, "--steps", str(steps), *named]


def run(*arguments: Any, **more: Any) -> Any:
    return train.train(train.parse(options(*arguments, **more)))


def checkpoint(out: Path) -> str:
    """Its digest: pytest would look for minutes for where two of a megabyte differ."""
    return hashlib.sha256((out / "checkpoint.pt").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_has_the_same_bits(folder: Path, tmp_path: Path, method: str) -> None:
    run(folder, tmp_path / "one", method, 5)
    run(folder, tmp_path / "two", method, 3)
    half = checkpoint(tmp_path / "two")
    trainer = run(folder, tmp_path / "two", method, 5)
    assert checkpoint(tmp_path / "two") == checkpoint(tmp_path / "one") != half
    assert trainer.generator.attention.gamma != 0
    sheets = [tmp_path / run / "samples-000005.png" for run in ("one", "two")]
    assert (sheets[0].read_bytes() == sheets[1].read_bytes()) is True
    assert (tmp_path / "two" / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("method", "wait"), [("sdpa", 0.0), ("tree", 0.03), ("tree", 0.1), ("lsh", 0.3)]
)
def test_a_killed_run_has_the_same_bits(
    folder: Path, tmp_path: Path, method: str, wait: float
) -> None:
    steps = 60
    command = [sys.executable, "-c", "import sys, train; train.main(sys.argv[1:])"]
    command += options(folder, tmp_path / "killed", method, steps, size=16, attention=8, every=1)
    paths = os.pathsep.join([str(EXAMPLE), *sys.path])
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    while child.poll() is None and not (tmp_path / "killed" / "checkpoint.pt").exists():
        time.sleep(0.001)
    time.sleep(wait)
    child.kill()
    child.wait()
    done = len(load(tmp_path / "killed" / "checkpoint.pt", train.FORMAT)["losses"][0])
    assert 0 < done < steps
    rest = min(steps, done + 3)
    for name in ("killed", "whole"):
        run(folder, tmp_path / name, method, rest, size=16, attention=8, every=1)
    assert checkpoint(tmp_path / "killed") == checkpoint(tmp_path / "whole")


@pytest.mark.parametrize("attention", [8, 32])
@pytest.mark.parametrize("method", METHODS)
def test_attention_sits_where_it_was_asked_for(method: str, attention: int) -> None:
    seen = []
    attend = attention_by(method, 0.05, 0.5)

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((q.shape[1:3], k.shape[1:3], v.shape[1:3]))
        return attend(q, k, v)

    shape = Shape(32, attention, 8)
    with torch.no_grad():
        images = Generator(shape, spy)(torch.randn(2, 64))
        Discriminator(shape, spy)(images)
    assert images.shape == (2, 3, 32, 32)
    assert seen == [((1, attention**2), (1, attention**2 // 4), (1, attention**2 // 4))] * 2


@pytest.mark.parametrize("method", ["sdpa", "dense", "lsh", "tree"])
def test_methods_agree_with_explicit_attention(method: str) -> None:
    random = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 1, n, d, generator=random) for n, d in ((256, 4), (64, 4), (64, 8)))
    want = attention_by("explicit", 0, 0)(q, k, v)
    error = (attention_by(method, 0.05, 0.5)(q, k, v) - want).norm() / want.norm()
    assert error < {"lsh": 0.9, "tree": 0.06}.get(method, 1e-6)


def test_every_image_is_seen_before_any_again(folder: Path) -> None:
    crops = Crops(folder, 32, 0)
    crops.images = [np.full((40, 40, 3), level, np.uint8) for level in (0, 100, 200)]
    seen = crops.batch(6).amax((1, 2, 3))
    assert sorted(seen[:3].tolist()) == sorted(seen[3:].tolist()) == sorted(set(seen.tolist()))


def refused(says: str, *arguments: Any, **more: Any) -> None:
    with pytest.raises(Problem, match=says):
        run(*arguments, **more)


def test_bad_images_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(folder, out, "sdpa", 2)
    before = checkpoint(out)
    refused("is no folder or is not there", tmp_path / "nothing", out, "sdpa", 4)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "notes.txt").write_text("no image")
    refused(r"has no image, expected \.jpg", bad, out, "sdpa", 4)
    whole = (folder / "0.png").read_bytes()
    (bad / "cut.png").write_bytes(whole[: len(whole) // 2])
    refused(r"cut\.png: is damaged or no image", bad, out, "sdpa", 4)
    (bad / "cut.png").write_text("no image at all")
    refused(r"cut\.png: is damaged or no image", bad, out, "sdpa", 4)
    Image.new("RGB", (64, 31)).save(bad / "cut.png")
    refused("has 64 x 31 pixels, crops have 32 x 32; remove it", bad, out, "sdpa", 4)
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(bad / "cut.png")
    refused(r"cut\.png: has more than 8 bits a channel", bad, out, "sdpa", 4)
    Image.new("RGB", (64, 32)).save(bad / "cut.png")
    refused("was made with other images", bad, out, "sdpa", 4)
    assert checkpoint(out) == before


def test_a_full_disk_leaves_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(folder, out, "sdpa", 2)
    before = checkpoint(out)
    (out / ".checkpoint.pt.part").symlink_to("/dev/full")
    says = r"checkpoint\.pt: can't be written \(No space left on device\); the one before is intact"
    refused(says, folder, out, "sdpa", 4)
    assert checkpoint(out) == before
    assert [path.name for path in out.glob(".*")] == [".lock"]
    run(folder, out, "sdpa", 4)
    run(folder, tmp_path / "other", "sdpa", 4)
    assert checkpoint(out) == checkpoint(tmp_path / "other")


def test_a_loss_that_is_not_finite_leaves_the_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path, "sdpa", 2)
    before = checkpoint(tmp_path)

    def broken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.full((*q.shape[:3], v.shape[3]), torch.nan)

    monkeypatch.setattr(train, "attention_by", lambda *dials: broken)
    refused("step 3: a loss is nan", folder, tmp_path, "sdpa", 4)
    assert checkpoint(tmp_path) == before


def test_checkpoints_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, "sdpa", 2)
    refused("was made with method sdpa, now it is explicit", folder, tmp_path, "explicit", 4)
    refused("was made with batch 2, now it is 3", folder, tmp_path, "sdpa", 4, batch=3)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({"format": state["format"]}, tmp_path / "checkpoint.pt")
    refused("holds something else than expected .*settings", folder, tmp_path, "sdpa", 4)
    (tmp_path / "checkpoint.pt").write_bytes(whole[:-100])
    refused("is damaged or no checkpoint", folder, tmp_path, "sdpa", 4)
    torch.save({"weights": 1}, tmp_path / "checkpoint.pt")
    refused("is damaged or no checkpoint", folder, tmp_path, "sdpa", 4)


def test_losses_of_several_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        run(folder, tmp_path / name, "sdpa", 3)
    plot = tmp_path / "losses.svg"
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    losses.main([*runs, "--plot", str(plot)])
    assert plot.read_text().startswith("<?xml")
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split("|")[1:3] == [" one ", " 3 "]
    assert printed[2].split("|")[3:] == printed[3].split("|")[3:]
    (tmp_path / "other").mkdir()
    run(folder, tmp_path / "other" / "one", "sdpa", 3)
    runs[1] = str(tmp_path / "other" / "one")
    losses.main([*runs, "--plot", str(plot)])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in printed[2:]] == runs
    with pytest.raises(SystemExit, match=r"--plot .*: expected a name that ends in"):
        losses.main([*runs, "--plot", "losses.txt"])
    with pytest.raises(SystemExit, match="is damaged or no checkpoint"):
        losses.main([str(tmp_path / "three"), "--plot", str(plot)])


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("size", 48, "--size 48: must be a power of 2"),
        ("attention", 64, "--attention 64: must be one of 8, 16, 32"),
        ("width", 12, "--width 12: must be a multiple of 8"),
        ("batch", 0, "--batch 0: must be from 1 to 10000"),
        ("threads", 100000, "--threads 100000: must be from 1 to 256"),
        ("seed", -1, "--seed -1: must be from 0"),
        ("tolerance", 1, "--tolerance 1.0: must be from 0 to below 1"),
        ("density", 0, "--density 0.0: must be above 0"),
    ],
)
def test_options_are_checked(folder: Path, option: str, value: int, says: str) -> None:
    with pytest.raises(Problem, match=says):
        train.parse(options(folder, Path("unused"), "sdpa", 1, **{option: value}))


def test_problems_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"train\.py: images .*: is no folder"):
        train.main(options(tmp_path / "nothing", tmp_path, "sdpa", 1))


def test_the_table_resumes_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def measure(method: str, side: int, arguments: list[str], memory: float) -> dict[str, Any]:
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append((method, side))
        if method == "explicit":
            return {"failed": f"more than {memory:g} GB"}
        return {"seconds": side, "peak_bytes": 2**30}

    monkeypatch.setattr(table, "measure_apart", measure)
    file = tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        table.main(["--json", str(file), "--threads", "1"])
    assert list(json.loads(file.read_text())["cells"]) == [f"{m} 64" for m in table.ROWS[:4]]
    cells = json.loads(file.read_text())
    measured.clear()
    monkeypatch.setattr(table, "ROWS", table.ROWS[:4])
    monkeypatch.setattr(table, "SIDES", (64, 256))
    table.main(["--json", str(file), "--threads", "1"])
    assert measured == [(method, 256) for method in table.ROWS]
    assert "| 64 x 64 | more than 16 GB | 64.00 s, 1.00 GB |" in capsys.readouterr().out
    assert json.loads(file.read_text())["cells"].items() >= cells["cells"].items()
    with pytest.raises(SystemExit, match="was measured with other options"):
        table.main(["--json", str(file), "--threads", "2"])


def test_a_cell_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    Image.effect_noise((300, 256), 64).save(tmp_path / "noise.png")
    small = [
        str(tmp_path),
        "--size",
        "256",
        "--width",
        "8",
        "--batch",
        "1",
        "--steps",
        "1",
        "--threads",
        "1",
    ]
    paths = os.pathsep.join([str(EXAMPLE), *sys.path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        found = table.measure_apart("sdpa", 8, small, 16)
        assert found["seconds"] > 0
        assert 2**24 < found["peak_bytes"] < 2**31
        refused_cell = table.measure_apart("explicit", 128, [*small, "--memory", "2"], 2)
    assert refused_cell == {"failed": "more than 2 GB"}
