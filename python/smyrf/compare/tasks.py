"""Which task a model has on an input. Another kind of model is another class and a line here."""

from __future__ import annotations

from smyrf.compare import inputs
from smyrf.compare.generate import GenerateImages
from smyrf.compare.hearing import EncodeSound, SpellSound, Transcribe
from smyrf.compare.kinds import KIND_NAMES, TAKES
from smyrf.compare.models import Model, naming_the_model
from smyrf.compare.problem import Problem
from smyrf.compare.task import Amount, Task
from smyrf.compare.text import ClassifyText, EncodeText, RankText, ScoreText
from smyrf.compare.vision import EncodeImages


def make_task(model: Model, given: inputs.Input, amount: Amount | None = None) -> Task:
    """Pairs a model with an input of its kind.

    Raises Problem if they don't fit, or if the model can't read its input.
    """
    with naming_the_model(model.source.name):
        return _make_task(model, given, amount or Amount())


def _make_task(model: Model, given: inputs.Input, amount: Amount) -> Task:
    kind = model.source.kind
    if isinstance(given, inputs.Text):
        if kind == "encoder":
            return EncodeText(model, given, amount)
        if kind == "language":
            return ScoreText(model, given, amount)
        if kind == "classifier":
            single = model.module.config.num_labels == 1
            return (RankText if single else ClassifyText)(model, given, amount)
    if isinstance(given, inputs.Speech):
        if kind == "speech":
            return Transcribe(model, given, amount)
        if kind == "sound":
            return (EncodeSound if model.tokenizer is None else SpellSound)(model, given, amount)
    if isinstance(given, inputs.Images) and kind == "vision":
        return EncodeImages(model, given, amount)
    if isinstance(given, inputs.Noise) and kind == "generator":
        return GenerateImages(model, given, amount)
    raise Problem(
        f"model {model.source.name} is {KIND_NAMES[kind]} and the input is {given.kind}; give it "
        f"{TAKES[kind]}"
    )
