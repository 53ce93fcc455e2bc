"""What `smyrf compare` does with its options: checks, loads, compares, and delivers the results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from smyrf import _environment
from smyrf.compare.choice import Choice
from smyrf.compare.inputs import BUILT_IN, read_inputs
from smyrf.compare.kinds import KIND_NAMES, TAKES
from smyrf.compare.models import Source, find_model, load_model
from smyrf.compare.output_file import OutputFile, deliver, print_bytes
from smyrf.compare.plot import FORMATS, check_plot, draw
from smyrf.compare.problem import Problem
from smyrf.compare.sheet import check_sheet, draw_sheet

if TYPE_CHECKING:
    from smyrf.compare.comparison import Comparison
    from smyrf.compare.task import Task

DEFAULT_INPUTS = {"text": "devil", "speech": "librivox", "noise": "noise"}
EXAMPLES = {**DEFAULT_INPUTS, "images": "photo.jpg"}
WIDTH = 80  # where the output is no terminal
BETWEEN = 5  # seconds between two lines of progress
# How the JSON files of a model's folder begin.
MODEL_FILES = ("added_", "config", "generation", "merges", "model", "pre", "processor", "sentence",
               "special_", "token", "vocab")  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What is compared and how much of it, and `files`: where each of --json, --plot and --sheet
    goes, if given."""

    choices: list[Choice]
    layers: str | None
    threads: int | None
    files: dict[str, Path]
    length: int | None = None
    documents: int | None = None
    rounds: int = 3


def run(name: str, sources: list[str], wanted: Wanted) -> None:
    """Compares and delivers: the numbers first, then what is read and looked at.

    Raises Problem for what its reader can put right; what was measured has been delivered then.
    """
    threads = _threads(wanted)
    found = find_model(name)
    files = _check_files(found, sources, wanted.files)
    kind = TAKES[found.kind]
    if not sources and kind not in DEFAULT_INPUTS:
        raise Problem(
            f"model {name} is {KIND_NAMES[found.kind]}; give it {kind}, for example "
            f"{EXAMPLES[kind]}"
        )
    given = read_inputs(sources or [DEFAULT_INPUTS[kind]])
    if given.kind != kind:
        raise Problem(
            f"model {name} is {KIND_NAMES[found.kind]} and input {' '.join(sources)} is "
            f"{given.kind}; give it {kind}, for example {EXAMPLES[kind]}"
        )
    with _progress() as progress:
        progress.doing(f"loading {name}")
        model = load_model(found)
        import torch

        from smyrf.compare.comparison import Settings, compare
        from smyrf.compare.task import Amount
        from smyrf.compare.tasks import make_task

        if threads is not None:
            torch.set_num_threads(threads)
            # smyrf then takes as many as the model's own attention does.
            _environment.defaults = replace(_environment.defaults, num_threads=None)
        task = make_task(model, given, Amount(wanted.length, wanted.documents))
        settings = Settings(wanted.layers, torch.get_num_threads(), wanted.rounds)
        result = compare(name, task, wanted.choices, settings, progress)
    troubles = _deliver(result, task, files)
    if result.fault is not None:
        troubles.insert(0, result.fault)
    if troubles:
        raise Problem("\n".join(troubles))


def _threads(wanted: Wanted) -> int | None:
    """What is asked for, by the option or else by the environment.

    Raises Problem where that is too many, or the environment says something that smyrf refuses.
    """
    if _environment.problem:
        raise Problem(_environment.problem)
    name, threads = "--threads", wanted.threads
    if threads is None:
        name, threads = "SMYRF_NUM_THREADS", _environment.defaults.num_threads
    cores = os.cpu_count() or 1
    if threads is not None and threads > 4 * cores:
        raise Problem(
            f"{name} {threads}: this machine has {cores} core{'s' * (cores != 1)}, expected at "
            f"most {4 * cores}"
        )
    return threads


def _check_files(
    found: Source, sources: list[str], files: dict[str, Path]
) -> dict[str, OutputFile]:
    """Raises Problem where one can't be written, can't be made, or is read or written twice."""
    read = [found.folder]
    read += [BUILT_IN[one].path if one in BUILT_IN else Path(one) for one in sources]
    for option, path in files.items():
        if any(_is_part_of(path, place) for place in read):
            raise Problem(f"{option} {path}: is the input, too; give it another name")
    for (one, path), (other, same) in combinations(files.items(), 2):
        if path.resolve() == same.resolve():
            raise Problem(f"{one} and {other} {same}: are one file; give one another name")
    if "--plot" in files:
        check_plot(files["--plot"])
    if "--sheet" in files:
        if found.kind != "generator":
            raise Problem(
                f"--sheet {files['--sheet']}: model {found.name} is {KIND_NAMES[found.kind]}, "
                "no images"
            )
        check_sheet(files["--sheet"])
    opened = {option: OutputFile(path, option) for option, path in files.items()}
    to_stdout = [option for option, file in opened.items() if file.is_stdout]
    if len(to_stdout) > 1:
        raise Problem(f"{' and '.join(to_stdout)}: go to stdout; only one can")
    return opened


def _is_part_of(output: Path, read: Path) -> bool:
    """Whether it is there and is what is read: the file, or one that belongs to a folder's."""
    try:
        if output.exists() and output.samefile(read):
            return True
        inside = output.exists() and output.resolve().parent.samefile(read)
    except OSError:  # one of them is not there
        return False
    # Only what an earlier run may have left in the folder is written again.
    suffix = output.suffix.lower()
    return inside and (suffix not in (".json", *FORMATS) or output.name.startswith(MODEL_FILES))


def _deliver(result: Comparison, task: Task, files: dict[str, OutputFile]) -> list[str]:
    """Every output by itself, so that numbers are not lost to a picture; returns what failed."""
    from smyrf.compare import report

    def show() -> None:
        to_stdout = any(file.is_stdout for file in files.values())
        console = Console(stderr=to_stdout)
        if not console.is_terminal:
            console = Console(stderr=to_stdout, width=WIDTH)
        if to_stdout:
            report.show(result, task, console)
            return
        with console.capture() as shown:
            report.show(result, task, console)
        print_bytes(shown.get().encode(console.encoding, "backslashreplace"))

    def picture(file: OutputFile, draw_into: Callable[[BinaryIO], None]) -> None:
        if len(result.rows) < 3:
            raise Problem(f"{file.option} {file.path}: nothing to draw, no method could run")
        content = BytesIO()
        draw_into(content)
        file.write(content.getvalue())

    outputs: dict[str, Callable[[], None]] = {}
    if json := files.get("--json"):
        outputs[f"--json {json.path}"] = lambda: json.write(report.as_json(result).encode())
    outputs["the table"] = show
    if plot := files.get("--plot"):
        drawing = partial(draw, result, suffix=plot.path.suffix)
        outputs[f"--plot {plot.path}"] = lambda: picture(plot, drawing)
    if sheet := files.get("--sheet"):
        outputs[f"--sheet {sheet.path}"] = lambda: picture(sheet, partial(draw_sheet, result))
    return deliver(outputs)


def _progress() -> _Bar | _Lines:
    """On stderr, so that stdout holds the result and nothing else."""
    return _Bar() if sys.stderr is not None and sys.stderr.isatty() else _Lines()


class _Bar:
    """A progress bar with the time left."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def __enter__(self) -> _Bar:
        self.progress.start()
        self.task = self.progress.add_task("", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def start(self, steps: int) -> None:
        self.progress.update(self.task, total=steps)

    def doing(self, what: str) -> None:
        self.progress.update(self.task, description=what)

    def advance(self) -> None:
        self.progress.advance(self.task)


class _Lines:
    """A line now and then, for logs: what is done, and which share of the work is behind."""

    def __init__(self) -> None:
        self.steps, self.done, self.what = 0, 0, ""
        self.said = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, steps: int) -> None:
        self.steps = steps

    def doing(self, what: str) -> None:
        self.what = what
        self._say()

    def advance(self) -> None:
        self.done += 1
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if now - self.said >= BETWEEN and sys.stderr is not None:
            self.said = now
            share = f"{100 * self.done // self.steps} %, " if self.steps else ""
            print(f"smyrf: {share}{self.what}", file=sys.stderr, flush=True)
