"""The program from outside, on a generator: the published code with seeded random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_generator import build, generate, save
from test_compare import run, threads_as_before  # noqa: F401

import smyrf.gan
from smyrf.compare.biggan import load_biggan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "generator"
    save(build(16), path)
    return path


def test_a_generator_beside_dense(folder: Path, tmp_path: Path) -> None:
    file, sheet = tmp_path / "result.json", tmp_path / "sheet.png"
    result = run(str(folder), "--tolerance", ".1", "--n-hashes", "4", "--cluster-size", "64",
                 "--json", str(file), "--sheet", str(sheet))  # fmt: skip
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "Run with random weights" in said
    assert "8 images of 128 x 128 pixels" in said
    rows = {row["label"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["explicit", "dense", "tree 0.1", "lsh 4 x 64"]
    assert rows["explicit"]["figures"]["pixel_error_worst"] < 1e-5
    assert rows["dense"]["figures"] == {"pixel_error_mean": 0, "pixel_error_worst": 0}
    tree, lsh = rows["tree 0.1"], rows["lsh 4 x 64"]
    assert 0 < tree["figures"]["pixel_error_mean"] < tree["figures"]["pixel_error_worst"] < 0.1
    assert tree["density"] < 0.2
    assert 0.01 < tree["errors"]["median"] < 0.1
    assert tree["errors"]["worst_layer"] == "generator.layers.8"
    assert lsh["density"] == pytest.approx(0.25, rel=0.05)
    assert lsh["errors"]["median"] > tree["errors"]["median"]
    for row in rows.values():
        assert 0 < row["attention_seconds"] < row["whole_seconds"]
        assert row["peak_bytes_above_model"] > 0
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    rows_of_sheet = [pixels[22 + i * 154 : 150 + i * 154, 4:132] for i in range(3)]
    assert pixels.shape == (3 * 154, 4 + 8 * 132, 3)
    dense = rows_of_sheet[0].astype(int)
    assert dense.std() > 20
    for row, least in zip(rows_of_sheet[1:], (0.01, 0.1), strict=True):
        assert least < np.abs(row - dense).mean() < 5


def test_a_generator_with_attention_behind_its_last_block_is_loaded(tmp_path: Path) -> None:
    model = build(8)
    smyrf.gan.move_attention(model, 128, seed=1)
    with torch.no_grad():
        model.generator.layers[10].gamma.fill_(1)
    save(model, tmp_path)
    assert torch.equal(generate(load_biggan(tmp_path), 1), generate(model, 1))


def test_errors_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    def says(what: str, *arguments: str) -> None:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert what in " ".join(result.output.split())
        assert "Traceback" not in result.output

    says("is a generator of images and input devil is text; give it noise", str(folder), "devil")
    says("--sheet x.jpg: expected a name that ends in .png", str(folder), "--sheet", "x.jpg")
    says("model minilm is a text encoder, no images", "minilm", "--sheet", "x.png")
    one = str(tmp_path / "x.png")
    says("--plot and --sheet", str(folder), "--plot", one, "--sheet", one)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((folder / "config.json").read_text())
    says("has no weights, expected pytorch_model.bin", str(damaged))
    weights = (folder / "pytorch_model.bin").read_bytes()
    (damaged / "pytorch_model.bin").write_bytes(weights[:-1000])
    says("is damaged or does not fit", str(damaged))
    state: dict[str, Any] = torch.load(folder / "pytorch_model.bin")
    del state["generator.layers.8.gamma"]
    torch.save(state, damaged / "pytorch_model.bin")
    says("1 weights are missing or not the generator's, first generator.layers.8.g", str(damaged))
