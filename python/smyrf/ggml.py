"""The path of the plug-in for llama.cpp and other programs built on ggml.

`python -m smyrf.ggml` prints it, for GGML_BACKEND_PATH or ggml_backend_load(). Needs no PyTorch.
"""

from __future__ import annotations

import sys
from pathlib import Path

NAME = "libggml-smyrf.so"


def path() -> Path:
    """The path of the plug-in's file.

    Raises:
        FileNotFoundError: this build of smyrf has none.
    """
    file = Path(__file__).with_name(NAME)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: not there; install smyrf from a wheel, or by pip with "
            "-C cmake.define.SMYRF_GGML_SOURCE=/path/to/llama.cpp/ggml, the sources of the ggml "
            "that your program has"
        )
    return file


if __name__ == "__main__":
    try:
        print(path())
    except FileNotFoundError as error:
        sys.exit(f"smyrf: {error}")
