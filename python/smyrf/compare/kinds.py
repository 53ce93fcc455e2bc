"""What kind of model a configuration of transformers describes, by transformers' own tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smyrf.compare.problem import Problem, first_line

InputKind = Literal["text", "speech", "images", "noise"]
Kind = Literal["encoder", "classifier", "language", "speech", "sound", "vision", "generator"]
KIND_NAMES: dict[Kind, str] = {
    "encoder": "a text encoder",
    "classifier": "a classifier of text",
    "language": "a language model",
    "speech": "a speech recogniser",
    "sound": "an encoder of sound",
    "vision": "an encoder of images",
    "generator": "a generator of images",
}
TAKES: dict[Kind, InputKind] = {
    "encoder": "text",
    "classifier": "text",
    "language": "text",
    "speech": "speech",
    "sound": "speech",
    "vision": "images",
    "generator": "noise",
}


@dataclass(frozen=True)
class Described:
    """A kind, and the class of transformers that loads it."""

    kind: Kind
    loader: str


LANGUAGE = Described("language", "AutoModelForCausalLM")


def describe(folder: Path, raw: dict[str, Any], gguf: str | None = None) -> Described:
    """What the folder's config.json (`raw`), or the header of its file in GGUF, describes.

    Raises Problem where transformers knows no such model, or this program compares none.
    """
    import transformers
    from transformers.models.auto import modeling_auto as tables

    file = folder / (gguf or "config.json")
    try:
        options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:
        code = "; its code lies beside the weights, and smyrf runs none" * ("auto_map" in raw)
        raise Problem(
            f"{file}: model_type is {raw.get('model_type')!r}, which the installed transformers "
            f"{transformers.__version__} can't build ({first_line(error)}){code}"
        ) from error
    named = getattr(config, "architectures", None) or raw.get("architectures") or [""]
    architecture = str(named[0])
    # sentence-transformers' folder: whatever the model was, an embedding is made of it.
    if (folder / "1_Pooling" / "config.json").is_file():
        return Described("encoder", "AutoModel")
    kinds = (
        ("SEQUENCE_CLASSIFICATION", Described("classifier", "AutoModelForSequenceClassification")),
        ("CTC", Described("sound", "AutoModelForCTC")),
        ("CAUSAL_LM", LANGUAGE),
        ("TEXT_ENCODING", Described("encoder", "AutoModelForTextEncoding")),
    )
    for table, described in kinds:
        if architecture in _classes(getattr(tables, f"MODEL_FOR_{table}_MAPPING_NAMES")):
            return described
    if gguf and config.model_type in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return LANGUAGE
    if config.model_type == "whisper":
        return Described("speech", "WhisperForConditionalGeneration")
    try:
        base = transformers.AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise Problem(
            f"{file}: model_type is {config.model_type!r}; transformers has no base model of it"
        ) from error
    base = base[0] if isinstance(base, tuple) else base
    modes = base.input_modalities
    modes = (modes,) if isinstance(modes, str) else tuple(modes or ("text",))
    if "video" in modes or "time" in modes:
        raise Problem(f"{file}: a {base.__name__} takes {' and '.join(modes)}, not compared yet")
    kind: Kind = "vision" if "image" in modes else "sound" if "audio" in modes else "encoder"
    return Described(kind, "AutoModel")


def _classes(table: Any) -> set[str]:
    found: set[str] = set()
    for names in table.values():
        found |= {names} if isinstance(names, str) else set(names)
    return found
