"""The program `smyrf`: `compare` and `info`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

from smyrf import __version__
from smyrf.compare.choice import METHODS, pair
from smyrf.compare.output_file import deliver, ending_cleanly, print_bytes
from smyrf.compare.problem import Problem, first_line, not_installed

try:
    import typer

    from smyrf.compare.program import Wanted, run
except ModuleNotFoundError as missing:
    raise SystemExit(f"smyrf: {not_installed(missing, 'the program')}") from None

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
    """smyrf is a library of attention for long sequences on the CPU, a drop-in for dense attention
    in pretrained models: exact (`dense`), with an error you choose (`tree`), or by the clusters of
    the SMYRF paper (`lsh`). This program runs a model with each of them and compares."""


@app.command()
def compare(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder in transformers' format, a .gguf file, a name on the hub that is in the "
            "local cache (org/model), a folder of pytorch_pretrained_biggan; or minilm "
            "(all-MiniLM-L6-v2), whisper (tiny.en) or smollm2 (SmolLM2-135M-Instruct in 4 bits) "
            "from packages of PyPI."
        ),
    ] = "minilm",
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="One or more of a kind: devil, jargon or librivox (from packages of Debian), a "
            "text file (UTF-8, also .gz or .dz), a recording (wav, flac, ogg, mp3 ...), an image, "
            "or a folder of such files; NAME.txt beside a recording says what was said; noise for "
            "a generator; - is stdin. Default: devil for text, librivox for speech, noise.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method to set beside dense; repeat it for several: "
            + "; ".join(f"{name} ({summary})" for name, summary in METHODS.items())
            + ". Default: those whose dials are given, or tree.",
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
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How much the model gets at once: tokens of a document, pixels of an image's "
            "side, seconds of sound. Default: what it was made for, up to 4096 tokens.",
            show_default=False,
        ),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many documents, images or windows of sound are run. Default: as many as "
            "there are, up to what takes some ten seconds a method.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Timed runs a method; the best counts.")
    ] = 3,
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
        typer.Option(
            metavar="FILE",
            help="Write every number there, too; - is stdout, and the table goes to stderr then.",
            show_default=False,
        ),
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

    The model runs on the input with each method. You see what changes for you (embeddings and the
    nearest passages, labels, perplexity, the transcript, images), the error of the layers, and
    time. In causal layers every pair is evaluated. Nothing is downloaded.

    Examples:

    `smyrf compare` - MiniLM on The Devil's Dictionary, tree at two tolerances

    `smyrf compare ~/my-encoder book.txt --length 4096 --method auto --method tree`

    `smyrf compare org/model texts/ --json result.json` - a model that hf download has fetched

    `smyrf compare ~/my-vit photos/ --length 1024` - images of 1024 x 1024 pixels

    `smyrf compare ~/my-whisper talk.wav --tolerance .1 --plot heads.svg`
    """
    with ending_cleanly():
        try:
            choices = pair(
                method or [],
                tolerance or [],
                max_density,
                density or [],
                n_hashes or [],
                cluster_size or [],
            )
            files = {"--json": json, "--plot": plot, "--sheet": sheet}
            given = {option: path for option, path in files.items() if path is not None}
            wanted = Wanted(choices, layers, threads, given, length, documents, rounds)
            run(model, sources or [], wanted)
        except Exception as error:
            if debug:
                raise
            _fail(error)


@app.command()
def info() -> None:
    """What runs here: versions, processor, instruction set, threads, the plug-in of llama.cpp."""
    from smyrf import _environment, ggml
    from smyrf.compare import about

    lines = {name: version or "not installed" for name, version in about.versions().items()}
    lines |= {
        "processor": about.processor(),
        "instruction set": about.instruction_set(),
        "threads": str(about.threads()),
    }
    lines |= {name: os.environ[name] for name in _environment.VARIABLES if name in os.environ}
    try:
        lines["ggml plug-in"] = str(ggml.path())
    except FileNotFoundError as error:
        lines["ggml plug-in"] = str(error)
    said = "".join(f"{name:17} {value}\n" for name, value in lines.items())
    for trouble in deliver({"stdout": lambda: print_bytes(said.encode(errors="backslashreplace"))}):
        _fail(Problem(trouble))
    if _environment.problem:
        _fail(Problem(_environment.problem))


def _fail(error: Exception) -> None:
    """Ends the program with a sentence on stderr: code 2 for what its reader can put right."""
    if isinstance(error, BrokenPipeError):  # whoever read stdout has enough
        raise typer.Exit(1)
    code, message = 2, str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "smyrf").startswith("smyrf"):
        message = not_installed(error, "this")
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: can't be read or written ({error.strerror})"
    elif not isinstance(error, Problem):  # a defect of smyrf, or of a library under it
        code = 1
        message = f"stopped by an error of its own ({first_line(error)}); --debug shows where"
    for line in message.splitlines():
        typer.echo(f"smyrf: {line}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """What the command `smyrf` and `python -m smyrf` call."""
    for stream in (sys.stdout, sys.stderr):
        # A name or a transcript may hold letters that the terminal's encoding has not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="smyrf")
