"""Plans and statistics that are pickled and copied: exact, and hostile where bytes are damaged."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smyrf

RNG = np.random.default_rng(21)
Q, K, V = (RNG.standard_normal((2, 2, rows, 16), np.float32) for rows in (150, 300, 300))
MASKS = {
    "key_padding_mask": np.arange(300) < [[300], [250]],
    "query_padding_mask": np.arange(150) < [[150], [140]],
}
DIALS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense", "is_causal": True, "window": (40, 3), "positions": (160, 5)},
    "lsh": {"method": "lsh", "n_hashes": 3, "cluster_size": 20, "seed": 7},
    "tree": {"method": "tree", "tolerance": 0.5, "max_density": 0.7},
    "padded": {"method": "tree", "tolerance": 0.5, "max_density": 0.7, **MASKS},
    "auto": MASKS,
}
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda x, p=protocol: pickle.loads(pickle.dumps(x, p))  # type: ignore[misc]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def plan_of(name: str) -> smyrf.Plan:
    return smyrf.plan(Q, K, value=V, **DIALS[name])


def state_of(value: Any) -> tuple[Any, bytes]:
    load, (state,) = value.__reduce__()
    return load, state


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DIALS)
def test_a_plan_that_comes_back_is_the_plan(name: str, way: str) -> None:
    plan = plan_of(name)
    again = WAYS[way](plan)
    assert type(again) is smyrf.Plan
    assert again is not plan
    assert state_of(again)[1] == state_of(plan)[1]  # all that it holds
    assert repr(again) == repr(plan)
    assert again.window == plan.window
    assert again.positions == plan.positions
    out, lse = smyrf.attention(Q, K, V, plan=plan, return_lse=True)
    for found, wanted in zip(
        smyrf.attention(Q, K, V, plan=again, return_lse=True), (out, lse), strict=True
    ):
        assert np.array_equal(found, wanted)
    assert again.density(1, 1) == plan.density(1, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DIALS)
def test_statistics_that_come_back_say_the_same(name: str, way: str) -> None:
    _, statistics = smyrf.attention(Q, K, V, **DIALS[name], return_stats=True)
    again = WAYS[way](statistics)
    public = [field for field in dir(statistics) if not field.startswith("_")]
    assert "density" in public
    for field in public:
        assert np.array_equal(getattr(again, field), getattr(statistics, field)), field
    assert repr(again) == repr(statistics)


def test_a_plan_goes_to_another_process() -> None:
    code = (
        "import pickle, sys; plan = pickle.load(sys.stdin.buffer); "
        "sys.stdout.buffer.write(pickle.dumps(plan))"
    )
    plan = plan_of("padded")
    found = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(plan), capture_output=True, check=True
    )
    assert state_of(pickle.loads(found.stdout))[1] == state_of(plan)[1]


def test_a_large_plan_takes_the_bytes_of_its_arrays() -> None:
    rows = RNG.standard_normal((1, 2, 4096, 8), np.float32)
    plan = smyrf.plan(rows, rows, method="lsh", n_hashes=4, cluster_size=32)
    numbers = 4 * 2 * (2 * 4096)  # two orders a round and head
    assert 4 * numbers < len(pickle.dumps(plan)) < 1.2 * 4 * numbers


@pytest.mark.parametrize("name", ["lsh", "padded", "statistics"])
def test_damaged_bytes_are_refused(name: str) -> None:
    if name == "statistics":
        value: Any = smyrf.attention(Q, K, V, method="lsh", return_stats=True)[1]
    else:
        value = plan_of(name)
    load, state = state_of(value)
    sentence = "its bytes are damaged or not smyrf's; make it again"
    places = RNG.integers(0, len(state), 400).tolist() + list(range(100)) + [-1, -8, -9]
    for place in places:
        damaged = bytearray(state)
        damaged[place] ^= 1 << int(RNG.integers(8))
        with pytest.raises(ValueError, match=sentence):
            load(bytes(damaged))
    lengths = RNG.integers(0, len(state), 100).tolist() + list(range(20)) + [len(state) - 1]
    for length in lengths:
        with pytest.raises(ValueError, match=sentence):
            load(state[:length])
    for foreign in (b"", b"\0" * 1000, state + b"\0", state[1:], state * 2, pickle.dumps(3)):
        with pytest.raises(ValueError, match=sentence):
            load(foreign)


def with_checksum(fields: bytes) -> bytes:
    """As the core's own: FNV-1a."""
    total = 0xCBF29CE484222325
    for byte in fields:
        total = ((total ^ byte) * 0x100000001B3) % 2**64
    return fields + total.to_bytes(8, sys.byteorder)


@pytest.mark.parametrize("name", ["dense", "lsh", "tree"])
def test_damage_that_the_checksum_agrees_with_is_found_or_harmless(name: str) -> None:
    arrays = [array[:1, :1, :70, :4] for array in (Q, K, V)]
    load, state = state_of(smyrf.plan(*arrays[:2], value=arrays[2], **DIALS[name]))
    assert with_checksum(state[:-8]) == state
    fields = state[:-8]
    taken = 0
    messages: list[str] = []
    generator = np.random.default_rng(3)
    for n in range(200):
        damaged = bytearray(fields)
        place = n if n < 120 else int(generator.integers(len(fields)))  # the header, or anywhere
        damaged[place] = int(generator.integers(256))
        if n % 10 == 9:
            damaged = damaged[: int(generator.integers(len(fields)))]
        try:
            plan = load(with_checksum(bytes(damaged)))
        except ValueError as error:
            messages.append(str(error))
            continue
        taken += 1
        # Constants of another value, or sizes of another call: every use must hold.
        for use in (
            lambda plan=plan: smyrf.attention(*arrays, plan=plan),
            lambda plan=plan: plan.density(0, 0),
            lambda plan=plan: plan.head(0, 0, 0),
            lambda plan=plan: repr(plan),
        ):
            with contextlib.suppress(ValueError, NotImplementedError):
                use()
    assert taken + len(messages) == 200
    assert len(messages) > 30
    assert all(message.startswith("plan: ") for message in messages)


def test_what_is_no_state_is_refused() -> None:
    load, state = state_of(plan_of("lsh"))
    newer = with_checksum(state[:12] + (99).to_bytes(4, sys.byteorder) + state[16:-8])
    with pytest.raises(ValueError, match=r"plan: was saved in version 99, .* reads version 3"):
        load(newer)
    for bad in (None, "text", 3, [1, 2], bytearray(state)):
        with pytest.raises(TypeError, match=r"plan: got .* expected bytes"):
            load(bad)
    _, statistics = smyrf.attention(Q, K, V, return_stats=True)
    with pytest.raises(ValueError, match="plan: its bytes"):
        load(state_of(statistics)[1])
    with pytest.raises(ValueError, match="statistics: its bytes"):
        smyrf.Statistics(state)


@pytest.mark.parametrize("name", DIALS)
def test_a_saved_plan_is_loaded(name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    path = tmp_path / "plan"
    plan.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["plan"]
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    plan.save(str(link))  # over the first, as private as that
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    link.unlink()
    again = smyrf.Plan.load(path)
    assert state_of(again)[1] == state_of(plan)[1] == path.read_bytes()


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    plan = plan_of("padded")
    path = tmp_path / "plan"
    plan.save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[1:], whole[:100] + b"x" + whole[101:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="plan: its bytes are damaged"):
            smyrf.Plan.load(path)
    with pytest.raises(ValueError, match=r"path: .*missing can't be read: No such file"):
        smyrf.Plan.load(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"path: .* can't be read: Is a directory"):
        smyrf.Plan.load(tmp_path)
    with pytest.raises(ValueError, match=r"path: .*zero can't be read|plan: its bytes"):
        smyrf.Plan.load("/dev/zero")
    with pytest.raises(ValueError, match=r"path: .* can't be written: No such file"):
        plan.save(tmp_path / "no" / "plan")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"path: .*pipe can't be written"):
        plan.save(tmp_path / "pipe")
    (tmp_path / "pipe").unlink()
    with pytest.raises(ValueError, match=r"path: .* can't be written"):
        plan.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize("kind", [bytes, str])
def test_a_path_in_any_encoding_is_one(kind: type, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    path, missing = (os.path.join(folder, name) for name in (b"caf\xe9", b"\xff\xfe"))
    given = (path, missing) if kind is bytes else (os.fsdecode(path), os.fsdecode(missing))
    plan = plan_of("lsh")
    plan.save(given[0])
    assert os.listdir(folder) == [b"caf\xe9"]
    assert state_of(smyrf.Plan.load(given[0]))[1] == state_of(plan)[1]
    with pytest.raises(ValueError, match=r"path: .*\\xff\\xfe can't be read: No such file"):
        smyrf.Plan.load(given[1])
    with pytest.raises(ValueError, match=r"path: .*caf\\xe9/plan can't be written: Not a dir"):
        plan.save(Path(os.fsdecode(path)) / "plan")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (None, TypeError),
        (3, TypeError),
        (["plan"], TypeError),
        ("a\0b", ValueError),
        ("\ud800", ValueError),
    ],
)
def test_what_is_no_path_is_refused(path: Any, error: type[Exception]) -> None:
    for use in (smyrf.Plan.load, plan_of("lsh").save):
        with pytest.raises(error, match=r"^path: got .*, expected the path of a file: str, bytes"):
            use(path)


@pytest.mark.parametrize("kind", [smyrf.Plan, smyrf.Statistics])
def test_an_instance_that_nobody_filled_is_refused(kind: Any) -> None:
    class Own(kind):  # type: ignore[misc]
        pass

    for made in (kind, Own):
        with pytest.raises(TypeError, match="not safe"):
            object.__new__(made)
        with pytest.raises(TypeError, match="not safe"):
            copyreg._reconstructor(made, object, None)  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=r"__init__\(\): incompatible function arguments"):
            made()
        # nanobind makes one, and knows that nothing is in it.
        empty = made.__new__(made)
        for use in (repr, pickle.dumps, lambda x: x.method):
            with pytest.warns(RuntimeWarning, match="uninitialized"), pytest.raises(TypeError):
                use(empty)
        with pytest.raises(ValueError, match="its bytes are damaged"):
            empty.__init__(b"")
        del empty
    filled = smyrf.attention(Q, K, V, method="lsh", return_stats=True)[1]
    value = plan_of("lsh") if kind is smyrf.Plan else filled
    said = repr(value)
    with pytest.warns(RuntimeWarning), pytest.raises(TypeError):
        value.__init__(value.__reduce__()[1][0])
    assert repr(value) == said
