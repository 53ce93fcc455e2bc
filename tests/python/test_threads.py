"""Threads, forked workers, and a machine without PyTorch."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import smyrf

LSH = {"method": "lsh", "n_hashes": 4, "cluster_size": 16}


def arrays(seed: int, rows: int = 300) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 4, rows, 32), np.float32) for _ in range(3)]


def test_calls_from_many_python_threads_equal_calls_one_by_one() -> None:
    calls = [
        (seed, options | {"num_threads": threads})
        for seed in range(8)
        for options in ({}, {"is_causal": True}, LSH)
        for threads in (1, 2, 3)
    ]

    def run(call: tuple[int, dict[str, Any]]) -> tuple[bytes, bytes, list[float]]:
        out, lse, statistics = smyrf.attention(
            *arrays(call[0]), **call[1], return_lse=True, return_stats=True
        )
        return out.tobytes(), lse.tobytes(), statistics.density.ravel().tolist()

    one_by_one = [run(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, calls)) == one_by_one


def test_one_plan_serves_many_threads() -> None:
    query, key, value = arrays(0)
    plan = smyrf.plan(query, key, **LSH)
    expected = smyrf.attention(query, key, value, plan=plan)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(smyrf.attention, query, key, value, plan=plan) for _ in range(20)]
        assert all((future.result() == expected).all() for future in futures)


@pytest.fixture
def threads_switch_only_when_they_let_go() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_switch_only_when_they_let_go")
@pytest.mark.parametrize("what", ["attention", "lsh", "plan", "reference"])
def test_other_python_threads_run_during_a_call(what: str) -> None:
    """Python takes the lock from no thread here, so another one runs only if the call gives it."""
    query, key, value = arrays(0, {"plan": 20000, "reference": 700}.get(what, 10000))
    dials = {"method": "lsh", "n_hashes": 128, "cluster_size": 64}
    calls = {
        "attention": lambda: smyrf.attention(query, key, value, num_threads=1),
        "lsh": lambda: smyrf.attention(query, key, value, **dials, num_threads=1),
        "plan": lambda: smyrf.plan(query, key, **dials, num_threads=1),
        "reference": lambda: smyrf.reference.attention(query, key, value),
    }
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        calls[what]()
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    begun.wait()
    ran_during_the_call = not ended.is_set()
    worker.join()
    assert ended.is_set()
    assert ran_during_the_call


def run_python(code: str) -> None:
    """Run a program; a hang is a failure."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


FORK = """
import os, signal, sys
import numpy as np
import smyrf

rng = np.random.default_rng(0)
arrays = [rng.standard_normal((1, 4, 600, 32), np.float32) for _ in range(3)]
lsh = {"method": "lsh", "n_hashes": 4, "cluster_size": 16}

def bits(**options):
    return [smyrf.attention(*arrays, **o, **options).tobytes() for o in ({}, lsh)]

def child_agrees(expected):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that hangs
        agrees = bits(num_threads=2) == bits() == bits(num_threads=1) == expected
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if bits(num_threads=2) == expected else 1)
        _, status = os.waitpid(grandchild, 0)
        os._exit(0 if agrees and status == 0 else 1)
    _, status = os.waitpid(child, 0)
    return status == 0
"""

forks = pytest.mark.skipif(sys.platform == "win32", reason="no fork")


@forks
def test_a_child_forked_after_its_parent_computed() -> None:
    run_python(
        FORK
        + """
expected = bits(num_threads=2)
assert child_agrees(expected)
assert bits(num_threads=2) == expected  # the parent goes on with its threads
assert child_agrees(expected)
assert "torch" not in sys.modules
"""
    )


@forks
def test_a_child_forked_before_its_parent_computed() -> None:
    run_python(
        FORK
        + """
expected = bits(num_threads=1)
assert child_agrees(expected)
assert bits(num_threads=2) == expected
"""
    )


@forks
def test_a_child_forked_while_another_thread_computes() -> None:
    run_python(
        FORK
        + """
import threading
expected = bits(num_threads=2)
stop = threading.Event()
def compute():
    while not stop.is_set():
        assert bits(num_threads=2) == expected
thread = threading.Thread(target=compute)
thread.start()
agree = [child_agrees(expected) for _ in range(3)]
stop.set()
thread.join()
assert all(agree), agree
"""
    )


@forks
@pytest.mark.parametrize("first", ["import torch", "pass"], ids=["torch first", "smyrf first"])
def test_a_child_forked_after_its_parent_computed_with_pytorch(first: str) -> None:
    run_python(
        first
        + "\n"
        + FORK
        + """
import torch
torch.set_num_threads(2)
matrix = torch.rand(512, 512)
matrix @ matrix
tensors = [torch.from_numpy(x) for x in arrays]
def torch_bits():
    return [smyrf.attention(*tensors, **o).numpy().tobytes() for o in ({}, lsh)]
expected = bits(num_threads=2)
assert torch_bits() == expected
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if torch_bits() == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert child_agrees(expected)
assert torch_bits() == expected
"""
    )


@forks
def test_workers_of_multiprocessing() -> None:
    run_python("""
import multiprocessing
import numpy as np
import smyrf

def work(seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((1, 4, 600, 32), np.float32) for _ in range(3)]
    return smyrf.attention(*arrays, num_threads=2).tobytes()

expected = [work(seed) for seed in range(6)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(work, range(6)).get(60) == expected
""")


WITHOUT_TORCH = """
import sys
import numpy as np
import smyrf

query = np.random.default_rng(0).standard_normal((1, 2, 70, 16)).astype(np.float32)
with smyrf.collect(errors=True) as records:
    out = smyrf.attention(query, query, query)
    smyrf.attention(query, query, query, method="lsh", cluster_size=8)
assert records[0].relative_error.max() == 0
assert 0 < records[1].relative_error.max() < 2
assert np.abs(out - smyrf.reference.attention(query, query, query)).max() < 1e-5
assert smyrf.plan(query, query).method == "dense"
"""


def test_importing_and_calling_smyrf_does_not_import_torch() -> None:
    run_python(WITHOUT_TORCH + "assert 'torch' not in sys.modules\n")


def test_without_pytorch_numpy_calls_work() -> None:
    run_python(
        "import sys; sys.modules['torch'] = None\n"
        + WITHOUT_TORCH
        + """
try:
    import smyrf.torch
except ImportError as error:
    assert "torch" in str(error)
else:
    raise AssertionError("smyrf.torch was imported without torch")
"""
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("first", ["import torch", "pass"], ids=["torch first", "smyrf first"])
def test_with_pytorch_a_call_makes_no_threads_of_its_own(first: str) -> None:
    """A second pool would fight PyTorch's for the cores."""
    run_python(
        first
        + """
import os
import numpy as np
import smyrf
import torch
threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
torch.rand(512, 512) @ torch.rand(512, 512)
torch.rand(1 << 20).sin()
before = threads()
assert before > 2
array = np.ones((1, 4, 600, 32), np.float32)
smyrf.attention(array, array, array)
assert threads() == before, (before, threads())
"""
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("asked", [None, "3"])
def test_without_pytorch_a_call_has_threads_of_its_own(asked: str | None) -> None:
    run_python(
        f"""
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
asked = {asked!r}
if asked:
    os.environ["OMP_NUM_THREADS"] = asked
import numpy as np
import smyrf
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
array = np.ones((1, 4, 600, 32), np.float32)
out = smyrf.attention(array, array, array)
wanted = int(asked) if asked else len(os.sched_getaffinity(0))
assert threads() - before == wanted - 1, (before, threads())
assert (out == smyrf.attention(array, array, array, num_threads=1)).all()
"""
    )


def test_python_ends_while_other_threads_compute() -> None:
    """Python before 3.14 unwinds the stack of a thread that comes back then."""
    code = """
import threading, time, numpy, smyrf
rows = numpy.ones((1, 4, 512, 32), numpy.float32)
def work():
    while True:
        smyrf.attention(rows, rows, rows, method="dense")
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_another_thread_may_be_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = arrays(0, 16)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert smyrf.attention(query, key, value).shape == query.shape
