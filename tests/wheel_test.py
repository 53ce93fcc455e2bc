"""Tries an installed wheel where nothing but Python and NumPy is: tools/wheel.sh runs it."""

import os
import subprocess
import sys
import sysconfig
from ctypes import CDLL
from pathlib import Path

import numpy as np

import smyrf
import smyrf.ggml


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def attention() -> None:
    # A smooth curve: such rows have structure, random ones don't.
    at = np.linspace(0, 60, 4096, dtype=np.float32)[:, None]
    curve = 1.5 * np.sin(at * np.linspace(1, 10, 64, dtype=np.float32))[None, None]
    exact = smyrf.attention(curve, curve, curve, method="dense")
    truth = smyrf.reference.attention(curve[:, :, ::64], curve, curve)
    assert np.abs(exact[:, :, ::64] - truth).max() < 1e-4
    near, stats = smyrf.attention(
        curve, curve, curve, method="tree", tolerance=0.1, return_stats=True
    )
    assert np.linalg.norm(near - exact) < 0.15 * np.linalg.norm(exact)
    assert stats.density.max() < 0.5, stats.density


def programs() -> None:
    done = run(sys.executable, "-I", "-m", "smyrf.ggml")
    assert done.returncode == 0, done.stderr
    plugin = Path(done.stdout.strip())
    assert plugin == smyrf.ggml.path()
    assert plugin.is_file()
    # All that it needs of libraries is there; ggml's functions are its host's.
    assert CDLL(str(plugin), mode=os.RTLD_LAZY).ggml_backend_init
    done = run(str(Path(sysconfig.get_path("scripts"), "smyrf")), "--version")
    assert done.returncode == 1
    assert "pip install" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


if __name__ == "__main__":
    package = Path(smyrf.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package}: not the wheel"
    for name in ("py.typed", "_core.pyi"):  # what type checkers look for
        assert (package / name).is_file(), name
    attention()
    programs()
