"""What several test files need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smyrf.compare.models import EMBEDDED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def whisper() -> str:
    """Whisper tiny.en in transformers' format: converted once, and kept where the demo finds it."""
    target = ROOT / "build" / "whisper"
    if not target.is_dir():
        program = ROOT / "tools" / "convert_whisper.py"
        command = [sys.executable, str(program), EMBEDDED["whisper"].module, str(target)]
        subprocess.run(command, check=True, timeout=120)
    return str(target)
