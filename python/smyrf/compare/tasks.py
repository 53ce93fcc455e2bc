"""What a model does with an input, and how its answers are judged. One class a kind of model.

A task is cut into `batches`, each one call of the model; `timed` of them are enough to time.
Another kind of model is another class with the members of `Task` and a line in `make_task`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from smyrf.compare import inputs
from smyrf.compare.generate import GenerateImages
from smyrf.compare.models import KIND_NAMES, TAKES, Model, check_ids, naming_the_model
from smyrf.compare.problem import Problem
from smyrf.compare.sound import SAMPLE_RATE, Samples
from smyrf.compare.squares import AttendOldText
from smyrf.compare.switch import TRANSFORMERS
from smyrf.compare.task import Figure, Task, at_least, at_most
from smyrf.compare.words import error_rate

BATCH = 8
MOST_DOCUMENTS = 32
TIMED_DOCUMENTS = 8
WINDOW = 30 * SAMPLE_RATE  # samples; what Whisper was trained on and always computes


class EncodeText:
    """Documents of the model's full length, each one embedding of length 1."""

    whole_model = True
    ran = "on real input"
    keeps = "a mean cosine of at least 0.99, and 0.95 in the worst document"
    switch = TRANSFORMERS

    def __init__(self, model: Model, text: inputs.Text) -> None:
        self.model, self.weights = model.module, model.weights
        self.pooled_first = _pools_first_token(model)
        config = model.module.config
        if config.is_decoder:
            raise Problem(
                f"model {model.source.name}: its config.json says is_decoder, so its attention is "
                "causal, which tree and lsh don't take"
            )
        offset = 0
        if config.model_type == "roberta":
            if config.pad_token_id is None:
                raise Problem(
                    f"model {model.source.name}: its config.json has no pad_token_id, and RoBERTa "
                    "counts positions from it"
                )
            offset = config.pad_token_id + 1
        length = config.max_position_embeddings - offset
        pieces = model.tokenizer(
            text.text, truncation=True, max_length=length, return_overflowing_tokens=True
        )["input_ids"]
        check_ids(model, max(map(max, pieces)))
        # A shorter rest has another density and another cost; it counts only if it is all.
        full = [piece for piece in pieces if len(piece) == length] or pieces
        step = max(1.0, len(full) / MOST_DOCUMENTS)
        count = min(len(full), MOST_DOCUMENTS)
        documents = torch.tensor([full[int(i * step)] for i in range(count)])
        self.documents = documents.split(BATCH)  # type: ignore[no-untyped-call]
        self.batches = len(self.documents)
        self.timed = min(self.batches, TIMED_DOCUMENTS // BATCH)
        spread = ", evenly spread" if count < len(full) else ""
        rest = len(pieces) - len(full)
        self.about = (
            f"{text.title}: {count} of {len(full)} documents of {documents.shape[1]} tokens"
            f"{spread}{'; a shorter rest is left out' if rest else ''}; "
            f"timed on {sum(len(d) for d in self.documents[: self.timed])} of them"
        )

    def changeable(self, layer: str) -> bool:
        return True

    def narrow(self, layers: Sequence[str]) -> None:
        pass

    def run(self, batches: int, advance: Callable[[], None]) -> list[Any]:
        answers: list[Any] = []
        for ids in self.documents[:batches]:
            with torch.inference_mode():
                hidden = self.model(
                    input_ids=ids, attention_mask=torch.ones_like(ids)
                ).last_hidden_state
            pooled = hidden[:, 0] if self.pooled_first else hidden.mean(1)
            answers.extend(torch.nn.functional.normalize(pooled, dim=-1).numpy())
            advance()
        return answers

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        cosines = [float(a.astype(float) @ d) for a, d in zip(answers, dense, strict=True)]
        mean, worst = float(np.mean(cosines)), float(np.min(cosines))
        return [
            Figure("cosine_mean", "cosine to dense: mean", mean, f"{mean:.4f}"),
            Figure("cosine_worst", "  worst document", worst, f"{worst:.4f}"),
        ]

    def tell(self, answers: list[Any]) -> str | None:
        return None

    def scope(self, layers: int, every: int) -> str:
        return _replaced(layers, every)

    def verdict(self, figures: Sequence[Figure]) -> str:
        mean, worst = figures
        return (
            f"the embeddings keep a cosine of {mean.text} to dense's "
            f"(the worst document {worst.text})"
        )

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_least(figures[0], 0.99) and at_least(figures[1], 0.95)

    def reference(self) -> str | None:
        return None


class Transcribe:
    """Windows of up to 30 seconds, each written down greedily; the encoder's attention changes."""

    whole_model = True
    ran = "on real input"
    keeps = "at most 5 % of the words changed, and a word error rate not 2 % above dense's"
    switch = TRANSFORMERS

    def __init__(self, model: Model, speech: inputs.Speech) -> None:
        self.model, self.weights = model.module, model.weights
        self.tokenizer = model.tokenizer
        self.said = speech.transcript
        windows = _windows([u.samples for u in speech.utterances])
        self.features = [
            model.features(w, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            for w in windows
        ]
        self.batches = self.timed = len(self.features)
        seconds = sum(len(w) for w in windows) / SAMPLE_RATE
        self.about = (
            f"{speech.title}: {seconds:.1f} seconds in {_number(len(windows), 'window')} of 30 "
            f"seconds{'' if self.said else '; without a transcript'}"
        )
        settings = self.model.generation_config
        settings.do_sample, settings.num_beams, settings.max_length = False, 1, None
        # Whisper's own limit: half of the decoder's positions.
        settings.max_new_tokens = self.model.config.max_target_positions // 2
        self.language = {"language": "en", "task": "transcribe"} if _multilingual(settings) else {}

    def changeable(self, layer: str) -> bool:
        return layer.startswith("model.encoder.")

    def narrow(self, layers: Sequence[str]) -> None:
        pass

    def run(self, batches: int, advance: Callable[[], None]) -> list[Any]:
        answers = []
        for features in self.features[:batches]:
            with torch.inference_mode():
                ids = self.model.generate(features, **self.language)
            answers.append(self.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
            advance()
        return answers

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        written = " ".join(answers)
        figures = []
        if self.said is not None:
            rate = error_rate(self.said, written)
            figures.append(Figure("word_error_rate", "word error rate", rate, _percent(rate)))
        change = error_rate(" ".join(dense), written)
        figures.append(Figure("words_changed", "words unlike dense's", change, _percent(change)))
        return figures

    def tell(self, answers: list[Any]) -> str | None:
        return " ".join(answers)

    def scope(self, layers: int, every: int) -> str:
        return _replaced(layers, every)

    def verdict(self, figures: Sequence[Figure]) -> str:
        changed = f"{figures[-1].text} of the words differ from dense's"
        if self.said is None:
            return changed
        return f"the word error rate is {figures[0].text} and {changed}"

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        rate, base = figures[0].value, dense[0].value  # both the words changed without transcript
        no_worse = rate is None or base is None or rate <= base + 0.02
        return at_most(figures[-1], 0.05) and (self.said is None or no_worse)

    def reference(self) -> str | None:
        return self.said


def make_task(model: Model, given: inputs.Input) -> Task:
    """Pairs a model with an input of its kind.

    Raises Problem if they don't fit, or if a model that reads its input here can't.
    """
    with naming_the_model(model.source.name):
        return _make_task(model, given)


def _make_task(model: Model, given: inputs.Input) -> Task:
    if model.source.kind == "encoder" and isinstance(given, inputs.Text):
        return EncodeText(model, given)
    if model.source.kind == "language" and isinstance(given, inputs.Text):
        return AttendOldText(model, given)
    if model.source.kind == "speech" and isinstance(given, inputs.Speech):
        return Transcribe(model, given)
    if model.source.kind == "generator" and isinstance(given, inputs.Noise):
        return GenerateImages(model, given)
    raise Problem(
        f"model {model.source.name} is {KIND_NAMES[model.source.kind]} and the input is "
        f"{given.kind}; give it {TAKES[model.source.kind]}"
    )


def _replaced(layers: int, every: int) -> str:
    return f"The other columns replace {layers} of the {every} attention layers."


def _windows(recordings: Sequence[Samples]) -> list[Samples]:
    """Recordings joined while they fit into a window; longer ones cut every 30 seconds.

    One full window is what Whisper was trained on: a short recording alone would be mostly the
    silence that fills its window up.
    """
    windows: list[Samples] = []
    for recording in recordings:
        if windows and len(windows[-1]) + len(recording) <= WINDOW:
            windows[-1] = np.concatenate([windows[-1], recording])
        else:
            windows += [recording[i : i + WINDOW] for i in range(0, len(recording), WINDOW)]
    return windows


def _pools_first_token(model: Model) -> bool:
    """As sentence-transformers' folder says; the mean over the tokens where none is there."""
    from smyrf.compare.models import read_json

    path = model.source.folder / "1_Pooling" / "config.json"
    return path.is_file() and bool(read_json(path).get("pooling_mode_cls_token"))


def _multilingual(settings: Any) -> bool:
    return bool(getattr(settings, "is_multilingual", False))


def _percent(rate: float | None) -> str:
    return "-" if rate is None or math.isnan(rate) else f"{100 * rate:.1f} %"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
