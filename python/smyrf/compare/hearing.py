"""Models of sound: Whisper, which writes speech down, and encoders, some of which write letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from smyrf.compare import inputs
from smyrf.compare.models import Model
from smyrf.compare.problem import Problem
from smyrf.compare.sound import SAMPLE_RATE, Samples
from smyrf.compare.switch import of_transformers
from smyrf.compare.task import Amount, Figure, Quiet, at_least, at_most, cosine, percent
from smyrf.compare.words import error_rate

WINDOW = 30  # seconds; what Whisper was trained on and always computes


class _Written(Quiet):
    """What tasks whose answer is a transcript share."""

    said: str | None

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        written = " ".join(answers)
        figures = []
        if self.said is not None:
            rate = error_rate(self.said, written)
            figures.append(Figure("word_error_rate", ("word", "errors"), rate, percent(rate)))
        change = error_rate(" ".join(dense), written)
        figures.append(Figure("words_changed", ("words", "changed"), change, percent(change)))
        return figures

    def tell(self, answers: list[Any]) -> str | None:
        return " ".join(answers)

    def verdict(self, figures: Sequence[Figure]) -> str:
        changed = f"{figures[-1].text} of the words differ from dense's"
        return changed if self.said is None else f"word errors are {figures[0].text}, and {changed}"

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        rate, base = figures[0].value, dense[0].value  # both the words changed without transcript
        no_worse = rate is None or base is None or rate <= base + 0.02
        return at_most(figures[-1], 0.05) and (self.said is None or no_worse)

    def reference(self) -> str | None:
        return self.said


class Transcribe(_Written):
    """Windows of up to 30 seconds, each written down greedily; the encoder's attention changes."""

    keeps = "at most 5 % of the words changed, and word errors not 2 % above dense's"

    def __init__(self, model: Model, speech: inputs.Speech, amount: Amount) -> None:
        if amount.length is not None:
            raise Problem(
                f"--length {amount.length}: Whisper's windows always have {WINDOW} seconds"
            )
        self.model, self.weights = model.module, model.weights
        self.switch, self.tokenizer = of_transformers(model.own), model.tokenizer
        self.said = speech.transcript if amount.documents is None else None
        self.about, windows = _heard(speech, WINDOW, amount)
        self.features = [
            model.features(w, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            for w in windows
        ]
        self.batches = self.observed = self.timed = len(self.features)
        self.rows = f"{self.model.config.max_source_positions} rows"
        settings = self.model.generation_config
        settings.do_sample, settings.num_beams, settings.max_length = False, 1, None
        # Whisper's own limit: half of the decoder's positions.
        settings.max_new_tokens = self.model.config.max_target_positions // 2
        many = bool(getattr(settings, "is_multilingual", False))
        self.language = {"language": "en", "task": "transcribe"} if many else {}

    def changeable(self, layer: str) -> bool:
        return layer.startswith("model.encoder.")

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        answers = []
        for features in self.features[batches.start : batches.stop]:
            with torch.inference_mode():
                ids = self.model.generate(features, **self.language)
            answers.append(self.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
            advance()
        return answers


class _Heard:
    """What encoders of sound share: windows through the model."""

    def prepare(self, model: Model, speech: inputs.Speech, amount: Amount) -> None:
        self.model, self.weights = model.module, model.weights
        self.switch = of_transformers(model.own)
        seconds = amount.length or WINDOW
        self.about, windows = _heard(speech, seconds, amount)
        rate = int(getattr(model.features, "sampling_rate", SAMPLE_RATE))
        if rate != SAMPLE_RATE:
            raise Problem(
                f"model {model.source.name}: hears {rate} samples a second, expected {SAMPLE_RATE}"
            )
        name = self.model.main_input_name
        made = [model.features(w, sampling_rate=rate, return_tensors="pt") for w in windows]
        self.calls = [{name: each[name]} for each in made]
        self.batches = self.observed = self.timed = len(self.calls)
        self.rows = f"{seconds} seconds"

    def outputs(self, batches: range, advance: Callable[[], None], of: Callable[[Any], Any]) -> Any:
        answers = []
        for call in self.calls[batches.start : batches.stop]:
            with torch.inference_mode():
                answers.append(of(self.model(**call)))
            advance()
        return answers


class EncodeSound(_Heard, Quiet):
    """Each window's frames as the last layer gives them."""

    keeps = "a mean cosine of at least 0.99, and 0.95 in all but a hundredth of the frames"

    def __init__(self, model: Model, speech: inputs.Speech, amount: Amount) -> None:
        self.prepare(model, speech, amount)

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        return list(self.outputs(batches, advance, lambda out: out.last_hidden_state[0].numpy()))

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        pairs = zip(np.concatenate(answers), np.concatenate(dense), strict=True)
        cosines = [cosine(a, d) for a, d in pairs]
        mean, low = float(np.mean(cosines)), float(np.percentile(cosines, 1))
        return [
            Figure("cosine_mean", ("cosine", "mean"), mean, f"{mean:.4f}"),
            Figure("cosine_low", ("cosine", "worst 1 %"), low, f"{low:.4f}"),
        ]

    def verdict(self, figures: Sequence[Figure]) -> str:
        return f"frames keep a cosine of {figures[0].text} (the worst 1 % below {figures[1].text})"

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_least(figures[0], 0.99) and at_least(figures[1], 0.95)


class SpellSound(_Heard, _Written):
    """Each window's likeliest letters, as a model with CTC writes them."""

    keeps = Transcribe.keeps

    def __init__(self, model: Model, speech: inputs.Speech, amount: Amount) -> None:
        self.prepare(model, speech, amount)
        self.tokenizer = model.tokenizer
        self.said = speech.transcript if amount.documents is None else None

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        ids = self.outputs(batches, advance, lambda out: out.logits[0].argmax(-1))
        return [str(self.tokenizer.decode(each)) for each in ids]


def _heard(speech: inputs.Speech, seconds: int, amount: Amount) -> tuple[str, list[Samples]]:
    """What is heard, in words and in windows."""
    windows = cut_windows([u.samples for u in speech.utterances], seconds * SAMPLE_RATE)
    windows = windows[: amount.documents]
    length = sum(len(w) for w in windows) / SAMPLE_RATE
    plural = "s" * (len(windows) != 1)
    said = "" if speech.transcript else "; without a transcript"
    about = (
        f"{speech.title}: {length:.1f} seconds in {len(windows)} window{plural} of {seconds}{said}"
    )
    return about, windows


def cut_windows(recordings: Sequence[Samples], window: int) -> list[Samples]:
    """Recordings joined while they fit into a window; longer ones cut at every window's end.

    One full window is what Whisper was trained on: a short recording alone would be mostly the
    silence that fills its window up.
    """
    windows: list[Samples] = []
    for recording in recordings:
        if windows and len(windows[-1]) + len(recording) <= window:
            windows[-1] = np.concatenate([windows[-1], recording])
        else:
            windows += [recording[i : i + window] for i in range(0, len(recording), window)]
    return windows
