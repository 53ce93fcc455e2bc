"""Stock llama.cpp without the plug-in and with it: speed by llama-bench, perplexity by
llama-perplexity.

FOLDER holds those two programs and llama-quantize, as tools/llama_cpp.sh builds them. The model is
SmolLM2, as it comes (4 bits, Q4_1) or quantised anew. llama-bench reads random tokens and
llama-perplexity a book. The columns take turns; of speeds the best counts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import smyrf.ggml
from smyrf.compare.debian import file_of
from smyrf.compare.models import find_model

LICENCE = 2000  # characters before the text
LONG = 4096  # tokens: a prompt that is read once
PLUGIN = {"GGML_BACKEND_PATH": str(smyrf.ggml.path())}
# Flash attention, and the plug-in's settings.
COLUMNS: dict[str, tuple[str, dict[str, str]]] = {
    "off": ("off", {}),
    "on": ("on", {}),
    "dense": ("on", PLUGIN | {"SMYRF_METHOD": "dense"}),
    "default": ("on", PLUGIN),
    "0.1": ("on", PLUGIN | {"SMYRF_TOLERANCE": "0.1"}),
}

LABELS = {
    "off": "ggml, flash attention off",
    "on": "ggml, flash attention on",
    "dense": "smyrf, exact",
    "default": "smyrf, default (5 %)",
    "0.1": "smyrf, 10 %",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="Q4_1", help="Q4_1 (as they come), Q8_0, F16 ...")
    parser.add_argument("--tokens", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--ubatch", type=int, nargs="+", default=[2048, 512], help="a chunk")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--perplexity", type=int, nargs="*", default=[4096, 8192], help="tokens")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="a picture of the last table of speeds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = quantised(options.folder, options.weights, Path(scratch))
        print(f"SmolLM2, {options.weights}. Tokens a second, and over the better of ggml's two")
        for threads in options.threads:
            for ubatch in options.ubatch:
                print_speeds(options, model, ubatch, threads)
        if options.perplexity:
            book = Path(scratch) / "book.txt"
            with gzip.open(file_of("usr/share/dictd/devil.dict.dz"), "rt") as file:
                book.write_text(file.read()[LICENCE:])
            print(f"\nPerplexity of a book's first tokens\n{'tokens':>8}", end="")
            print("".join(f"{name:>14}" for name in options.columns))
        for tokens in options.perplexity:
            cells = [perplexity(options.folder, model, book, x, tokens) for x in options.columns]
            base = dict(zip(options.columns, cells, strict=True)).get("on", cells[0])
            print(f"{tokens:8}" + "".join(f"{c:8.3f} {100 * (c / base - 1):+4.2f}%" for c in cells))


def print_speeds(options: argparse.Namespace, model: Path, ubatch: int, threads: int) -> None:
    print(f"\n-t {threads} -ub {ubatch}")
    print(f"{'tokens':>8}" + "".join(f"{name:>14}" for name in options.columns))
    table = []
    for tokens in options.tokens:
        shape = (tokens, ubatch, threads)
        rounds = [
            [speed(options.folder, model, name, shape) for name in options.columns]
            for _ in range(options.repeats)
        ]
        table.append([max(of_column) for of_column in zip(*rounds, strict=True)])
        print(line(tokens, options.columns, table[-1]), flush=True)
    if options.plot:
        draw(options, f"{threads} threads, chunks of {ubatch}", table)


def line(tokens: int, columns: list[str], speeds: list[float]) -> str:
    own = [s for name, s in zip(columns, speeds, strict=True) if name in ("off", "on")]
    base = max(own or speeds[:1])
    return f"{tokens:8}" + "".join(f"{s:8.0f} {s / base:4.2f}x" for s in speeds)


def draw(options: argparse.Namespace, title: str, table: list[list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, speeds in zip(options.columns, zip(*table, strict=True), strict=True):
        axes.plot(options.tokens, speeds, marker="o", label=LABELS[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks(options.tokens, [str(tokens) for tokens in options.tokens])
    axes.set(xlabel="tokens of the prompt", ylabel="tokens a second, whole model", ylim=(0, None))
    axes.set_title(f"llama.cpp, SmolLM2 {options.weights}, {title}", fontsize=10)
    axes.legend()
    figure.savefig(options.plot, dpi=120)


def quantised(folder: Path, weights: str, scratch: Path) -> Path:
    source = find_model("smollm2")
    model = source.folder / str(source.gguf)
    if weights == "Q4_1":
        return model
    target = scratch / f"smollm2-{weights}.gguf"
    command = ["llama-quantize", "--allow-requantize", str(model), str(target), weights]
    run(folder, command, {})
    return target


def run(
    folder: Path, command: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """One of llama.cpp's programs, with its output."""
    done = subprocess.run(
        [folder / command[0], *command[1:]],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done


def speed(folder: Path, model: Path, column: str, shape: tuple[int, int, int]) -> float:
    """Tokens a second of a prompt; `shape`: tokens, tokens in a chunk, threads."""
    flash, environment = COLUMNS[column]
    # The first reading of a short prompt is slower: it touches the memory first.
    repeats = "1" if shape[0] >= LONG else "3"
    command = ["llama-bench", "-m", str(model), "-n", "0", "--no-warmup", "-r", repeats]
    command += ["-fa", flash, "-b", "2048", "-o", "json"]
    for flag, value in zip(("-p", "-ub", "-t"), shape, strict=True):
        command += [flag, str(value)]
    return float(max(json.loads(run(folder, command, environment).stdout)[0]["samples_ts"]))


def perplexity(folder: Path, model: Path, book: Path, column: str, tokens: int) -> float:
    flash, environment = COLUMNS[column]
    command = ["llama-perplexity", "-m", str(model), "-f", str(book), "-fa", flash]
    command += ["-c", str(tokens), "-b", str(tokens), "-ub", "2048", "--chunks", "1", "-t", "2"]
    # A build with its CPU backend inside looks for plug-ins only when it reads the names of
    # backends: this flag names one, for no tensor.
    command += ["-ot", "^none$=CPU"]
    done = run(folder, command, environment)
    return float(re.findall(r"PPL = ([0-9.]+)", done.stdout + done.stderr)[-1])


if __name__ == "__main__":
    main()
