"""An encoder with a head over the mean of its tokens, its training and its answers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from corpus import Document
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

import smyrf
import smyrf.transformers
from smyrf.compare.choice import Choice
from smyrf.compare.models import find_model, load_model
from smyrf.compare.problem import Problem

RATE, HEAD_RATE = 1e-4, 1e-2  # at their highest; the head starts from nothing
WARM_UP = 0.1  # of the steps
LARGEST_GRADIENT = 1.0  # its norm

Encoded = dict[str, torch.Tensor]
Advance = Callable[[int], None]  # called with how many documents more are done


class Classifier(nn.Module):
    """Gives what transformers' own classifiers give: `loss`, where there are labels, and `logits`.

    Sentence encoders such as MiniLM were trained to say what a text is in the mean of its tokens.
    """

    encoder: Any  # transformers'
    head: nn.Linear

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        valid = attention_mask[..., None].to(states.dtype)
        logits = self.head((states * valid).sum(1) / valid.sum(1))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def load_classifier(name: str, classes: int, seed: int, length: int) -> tuple[Classifier, Any]:
    """A pretrained encoder by embedded name or folder, with a new head; and its tokenizer.

    Without attention dropout, which `tree` doesn't take: all methods train alike. Raises Problem
    where there is no such encoder, or where it has no positions for so many tokens.
    """
    source = find_model(name)
    if source.kind != "encoder":
        raise Problem(f"--model {name}: is no text encoder; expected a BERT or RoBERTa")
    model = load_model(source)
    if length > longest(model.module):
        raise Problem(f"--length {length}: {name} takes at most {longest(model.module)} tokens")
    drop_no_attention(model.module)
    torch.manual_seed(seed)
    return Classifier(model.module, classes), model.tokenizer


def drop_no_attention(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name.endswith("attention.self.dropout"):
            module.p = 0.0


def longest(encoder: Any) -> int:
    """Tokens that it has positions for; RoBERTa's first ones are for padding."""
    config = encoder.config
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return int(config.max_position_embeddings) - offset


def encode(tokenizer: Any, documents: list[Document], length: int) -> Encoded:
    """Documents cut to so many tokens, shorter ones padded to the longest that is left."""
    texts = [document.text for document in documents]
    encoded = tokenizer(
        texts, truncation=True, max_length=length, padding=True, return_tensors="pt"
    )
    labels = torch.tensor([document.label for document in documents])
    return {**{name: encoded[name] for name in ("input_ids", "attention_mask")}, "labels": labels}


def part(data: Encoded, indices: torch.Tensor) -> Encoded:
    return {name: rows[indices] for name, rows in data.items()}


def attend_by(model: nn.Module, choice: Choice, data: Encoded, seed: int) -> None:
    """Switches the model to a method, with dials for the data's length."""
    dials: dict[str, Any] = choice.resolve(data["input_ids"].shape[1])
    if choice.method != "dense":
        dials = {**dials, "seed": seed}
    smyrf.transformers.enable(model, method=choice.method, **dials)


def optimizer_of(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """And its schedule: up for the first steps, then down to 0."""
    head = [w for name, w in model.named_parameters() if name.startswith(("head.", "classifier."))]
    known = {id(weight) for weight in head}
    body = [weight for weight in model.parameters() if id(weight) not in known]
    groups = [{"params": body, "lr": RATE}, {"params": head, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, math.ceil(WARM_UP * steps), steps
    )
    return optimizer, schedule


def fit(
    model: nn.Module, data: Encoded, batch: int, seed: int, advance: Advance = lambda count: None
) -> list[float]:
    """One epoch by a plain loop; the loss of every step.

    Raises Problem where one is not finite.
    """
    torch.manual_seed(seed)  # of dropout
    count = len(data["labels"])
    random = torch.Generator().manual_seed(seed)
    batches = torch.randperm(count, generator=random).split(batch)
    optimizer, schedule = optimizer_of(model.train(), len(batches))
    losses = []
    for indices in batches:
        losses.append(step(model, part(data, indices), optimizer))
        schedule.step()
        if not math.isfinite(losses[-1]):
            raise Problem(f"step {len(losses)}: the loss is {losses[-1]}; nothing is written")
        advance(len(indices))
    return losses


def step(model: nn.Module, data: Encoded, optimizer: torch.optim.Optimizer) -> float:
    loss = model(**data).loss
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    return float(loss.detach())


def fit_by_trainer(
    model: nn.Module, data: Encoded, batch: int, seed: int, advance: Advance = lambda count: None
) -> list[float]:
    """The same by transformers' Trainer; dropout draws other numbers."""

    class Advancing(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            advance(batch)

    count = len(data["labels"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=batch,
                num_train_epochs=1,
                max_grad_norm=LARGEST_GRADIENT,
                seed=seed,
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=[part(data, torch.tensor(index)) for index in range(count)],
            optimizers=optimizer_of(model, math.ceil(count / batch)),
            callbacks=[Advancing],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not np.isfinite(losses).all():
        raise Problem("a loss is not finite; nothing is written")
    return losses


@dataclass(frozen=True)
class Answers:
    """What a model said of documents, and how. `losses` are cross-entropies in nats."""

    correct: list[bool]
    losses: list[float]
    density: float  # share of the pairs evaluated, mean over layers, heads and documents
    dense_heads: float  # share of those that went dense
    seconds: float  # a document

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.correct))

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def answer(
    model: nn.Module, data: Encoded, batch: int, advance: Advance = lambda count: None
) -> Answers:
    correct: list[bool] = []
    losses: list[float] = []
    start = perf_counter()
    with torch.inference_mode(), smyrf.collect() as records:
        for indices in torch.arange(len(data["labels"])).split(batch):
            given = part(data, indices)
            logits = model.eval()(**given).logits
            correct += (logits.argmax(1) == given["labels"]).tolist()
            losses += functional.cross_entropy(logits, given["labels"], reduction="none").tolist()
            advance(len(indices))
    seconds = (perf_counter() - start) / len(correct)
    density, dense = (
        np.concatenate([getattr(r.statistics, name).ravel() for r in records])
        for name in ("density", "dense_heads")
    )
    return Answers(correct, losses, float(density.mean()), float(dense.mean()), seconds)
