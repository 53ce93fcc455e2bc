"""Models of text: encoders, classifiers and rerankers, language models."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from smyrf.compare import inputs
from smyrf.compare.models import Model, read_json
from smyrf.compare.pieces import affordable, cut, evenly, length_of, spread
from smyrf.compare.problem import Problem
from smyrf.compare.switch import of_transformers
from smyrf.compare.task import Amount, Figure, Quiet, at_least, at_most, cosine, percent

TOKENS = 4096  # of the documents that are run at once, and of those that are timed
OBSERVED = 16384  # tokens in which errors are collected
PASSAGES = 200
NEAREST = 10
ENOUGH = 3 * NEAREST  # passages below it share too many of the nearest by chance
HELD_OUT = 6  # one piece in so many becomes a query
QUERY, QUERIES = 64, 40  # tokens of a query, and how many
JUDGED = 512  # tokens at the end of a document whose probabilities count


class _Documents(Quiet):
    """What tasks on documents of equal length share: how they go through the model."""

    def __init__(self, model: Model, documents: list[dict[str, torch.Tensor]], length: int) -> None:
        """`documents`: keywords of the model's call, each tensor (1, length)."""
        self.model, self.weights = model.module, model.weights
        self.switch = of_transformers(model.own)
        self.rows = f"{length} tokens"
        together = max(1, TOKENS // length)
        self.calls = [
            _joined(documents[i : i + together]) for i in range(0, len(documents), together)
        ]
        self.batches = len(self.calls)
        self.timed = 1
        self.observed = min(self.batches, max(1, OBSERVED // (together * length)))

    @property
    def documents_timed(self) -> int:
        return sum(len(call["input_ids"]) for call in self.calls[: self.timed])

    def run(self, batches: range, advance: Callable[[], None]) -> list[Any]:
        answers: list[Any] = []
        for call in self.calls[batches.start : batches.stop]:
            with torch.inference_mode():
                answers += self.answer(call)
            advance()
        return answers

    def answer(self, call: dict[str, torch.Tensor]) -> list[Any]:
        raise NotImplementedError


class EncodeText(_Documents):
    """Passages of one length and short queries, each one embedding of length 1."""

    keeps = "a mean cosine of at least 0.99, 0.95 in the worst passage, and 90 % of the ten nearest"

    def __init__(self, model: Model, text: inputs.Text, amount: Amount) -> None:
        self.pool = _pooling(model)
        length = length_of(model, amount.length, TOKENS)
        pieces, rest = cut(model, text.text, length)
        passages, held_out = pieces, []
        if len(pieces) >= 2 * ENOUGH:
            held_out = spread(pieces[::HELD_OUT], QUERIES)
            passages = [piece for i, piece in enumerate(pieces) if i % HELD_OUT]
        every = len(passages)
        passages = spread(passages, amount.documents or affordable(model, length, 8, PASSAGES))
        if len(passages) < ENOUGH:
            held_out = []
        documents = [_ids(piece) for piece in passages]
        super().__init__(model, documents, len(passages[0]))
        self.passages, self.queries = len(passages), len(held_out)
        if held_out:
            words = model.tokenizer.batch_decode(held_out, skip_special_tokens=True)
            made = [
                model.tokenizer(w, truncation=True, max_length=QUERY)["input_ids"] for w in words
            ]
            by_length: dict[int, list[Any]] = {}
            for ids in made:
                by_length.setdefault(len(ids), []).append(_ids(ids))
            self.calls += [_joined(same) for same in by_length.values()]
            self.batches = len(self.calls)
        before = "; before its Dense layer" if any(model.source.folder.glob("*_Dense")) else ""
        queries = f"; {len(held_out)} short queries from the text between" if held_out else ""
        self.about = (
            f"{text.title}: {evenly(len(passages), every)} of {len(passages[0])} tokens"
            f"{'; a shorter rest is left out' * bool(rest)}{queries}{before}; timed on "
            f"{self.documents_timed} documents"
        )

    def answer(self, call: dict[str, torch.Tensor]) -> list[Any]:
        hidden = self.model(**call).last_hidden_state
        pooled = {"cls": hidden[:, 0], "lasttoken": hidden[:, -1], "mean": hidden.mean(1)}
        return list(torch.nn.functional.normalize(pooled[self.pool], dim=-1).numpy())

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        count = self.passages
        cosines = [cosine(a, d) for a, d in zip(answers[:count], dense[:count], strict=True)]
        mean, worst = float(np.mean(cosines)), float(np.min(cosines))
        figures = [
            Figure("cosine_mean", ("cosine", "mean"), mean, f"{mean:.4f}"),
            Figure("cosine_worst", ("cosine", "worst"), worst, f"{worst:.4f}"),
        ]
        if self.queries:
            same = _same_nearest(np.stack(answers), np.stack(dense), count)
            figures.append(Figure("same_nearest", ("same ten", "nearest"), same, percent(same)))
        return figures

    def verdict(self, figures: Sequence[Figure]) -> str:
        said = f"embeddings keep a cosine of {figures[0].text} (the worst {figures[1].text})"
        if self.queries:
            said += f" and {figures[2].text} of each query's ten nearest passages"
        return said

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        near = all(at_least(figure, 0.9) for figure in figures[2:])
        return at_least(figures[0], 0.99) and at_least(figures[1], 0.95) and near


class ScoreText(_Documents):
    """How well a language model expects the last tokens of each document."""

    keeps = "a perplexity not 1 % above dense's, and 98 % of the next tokens"

    def __init__(self, model: Model, text: inputs.Text, amount: Amount) -> None:
        length = length_of(model, amount.length, 2048)
        pieces, rest = cut(model, text.text, length)
        if len(pieces[0]) < 2:
            raise Problem(f"input {text.title}: holds 1 token, expected at least 2")
        documents = spread(pieces, amount.documents or affordable(model, length, 1, 4))
        super().__init__(model, [_ids(piece) for piece in documents], len(documents[0]))
        self.judged = min(JUDGED, len(documents[0]) - 1)
        parameters = inspect.signature(self.model.forward).parameters
        self.options: dict[str, Any] = {"use_cache": False}
        if "logits_to_keep" in parameters:  # all of them may take gigabytes
            self.options["logits_to_keep"] = self.judged + 1
        self.about = (
            f"{text.title}: {evenly(len(documents), len(pieces))} of {len(documents[0])} tokens"
            f"{'; a shorter rest is left out' * bool(rest)}; judged by the last {self.judged} "
            f"tokens of each; timed on {self.documents_timed}"
            f"{'; weights of few bits, computed in float32' * (model.source.gguf is not None)}"
        )

    def answer(self, call: dict[str, torch.Tensor]) -> list[Any]:
        logits = self.model(**call, **self.options).logits[:, -self.judged - 1 : -1].float()
        wanted = call["input_ids"][:, -self.judged :]
        answers = []
        for scores, ids in zip(logits, wanted, strict=True):
            surprise = torch.nn.functional.cross_entropy(scores, ids, reduction="none")
            answers.append((surprise.double().numpy(), scores.argmax(-1).numpy()))
        return answers

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        surprise = float(np.mean([a[0] for a in answers]))
        perplexity = math.exp(min(surprise, 700.0))
        same = float(np.mean([a[1] == d[1] for a, d in zip(answers, dense, strict=True)]))
        return [
            Figure("perplexity", ("perplexity", ""), perplexity, f"{perplexity:.4g}"),
            Figure("same_next", ("same next", "token"), same, percent(same)),
        ]

    def verdict(self, figures: Sequence[Figure]) -> str:
        return (
            f"perplexity is {figures[0].text}, and {figures[1].text} of the next tokens are dense's"
        )

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        base = dense[0].value
        return base is not None and at_most(figures[0], 1.01 * base) and at_least(figures[1], 0.98)


class ClassifyText(_Documents):
    """The probabilities of documents' labels."""

    keeps = "the same label for 98 % of the documents, and no probability off by more than 5 %"

    def __init__(self, model: Model, text: inputs.Text, amount: Amount) -> None:
        length = length_of(model, amount.length, TOKENS)
        pieces, rest = cut(model, text.text, length)
        documents = spread(pieces, amount.documents or affordable(model, length, 8, 64))
        super().__init__(model, [_ids(piece) for piece in documents], len(documents[0]))
        config = model.module.config
        self.many = getattr(config, "problem_type", None) == "multi_label_classification"
        self.about = (
            f"{text.title}: {evenly(len(documents), len(pieces))} of {len(documents[0])} tokens"
            f"{'; a shorter rest is left out' * bool(rest)}; timed on {self.documents_timed}"
        )

    def answer(self, call: dict[str, torch.Tensor]) -> list[Any]:
        logits = self.model(**call).logits
        scores = logits.sigmoid() if self.many else logits.softmax(-1)
        return list(scores.double().numpy())

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        off = float(np.max(np.abs(np.stack(answers) - np.stack(dense))))
        same = float(np.mean([self._same(a, d) for a, d in zip(answers, dense, strict=True)]))
        return [
            Figure("probability_off", ("largest", "difference"), off, percent(off)),
            Figure("same_label", ("same", "label"), same, percent(same)),
        ]

    def _same(self, answer: Any, dense: Any) -> bool:
        if self.many:
            return bool(np.array_equal(answer > 0.5, dense > 0.5))
        return bool(answer.argmax() == dense.argmax())

    def verdict(self, figures: Sequence[Figure]) -> str:
        off, same = figures
        return f"{same.text} of the labels stay, and probabilities are off by up to {off.text}"

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_most(figures[0], 0.05) and at_least(figures[1], 0.98)


class RankText(_Documents):
    """A reranker's score of each passage for each of a few queries."""

    keeps = "98 % of the passages' order, and no score off by more than 5 %"

    def __init__(self, model: Model, text: inputs.Text, amount: Amount) -> None:
        length = length_of(model, amount.length, TOKENS)
        room = length - QUERY
        if room < 8:
            raise Problem(
                f"--length {length}: too short for a query and a passage, give {QUERY + 8}"
            )
        pieces, _ = cut(model, text.text, room)
        words = model.tokenizer.batch_decode(pieces, skip_special_tokens=True)
        count = amount.documents or affordable(model, 4 * length, 4, 16)
        passages = spread(words[1:] or words, count)
        queries = [
            " ".join(words[0].split()[: QUERY // 4]),
            " ".join(words[-1].split()[-QUERY // 4 :]),
        ]
        pairs = model.tokenizer(
            [query for query in queries for _ in passages],
            passages * len(queries),
            truncation="only_second",
            max_length=length,
            padding=True,
            return_tensors="pt",
        )
        every = [
            {k: v[i : i + 1] for k, v in pairs.items()} for i in range(len(pairs["input_ids"]))
        ]
        super().__init__(model, every, int(pairs["input_ids"].shape[1]))
        self.shape = (len(queries), len(passages))
        self.about = (
            f"{text.title}: {len(queries)} queries with {len(passages)} passages each, "
            f"{self.rows} a pair; timed on {self.documents_timed} pairs"
        )

    def answer(self, call: dict[str, torch.Tensor]) -> list[Any]:
        return list(self.model(**call).logits[:, 0].sigmoid().double().numpy())

    def judge(self, answers: list[Any], dense: list[Any]) -> list[Figure]:
        got, want = (np.reshape(scores, self.shape) for scores in (answers, dense))
        off = float(np.max(np.abs(got - want)))
        above = [np.sign(scores[:, :, None] - scores[:, None]) for scores in (got, want)]
        kept = float(np.mean((above[0] == above[1])[above[1] != 0])) if np.any(above[1]) else 1.0
        return [
            Figure("score_off", ("largest", "difference"), off, percent(off)),
            Figure("order_kept", ("order", "kept"), kept, percent(kept)),
        ]

    def verdict(self, figures: Sequence[Figure]) -> str:
        off, kept = figures
        return f"{kept.text} of the passages' order stays, and scores are off by up to {off.text}"

    def close(self, figures: Sequence[Figure], dense: Sequence[Figure]) -> bool:
        return at_most(figures[0], 0.05) and at_least(figures[1], 0.98)


def _ids(piece: list[int]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([piece])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _joined(documents: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([each[name] for each in documents]) for name in documents[0]}


def _pooling(model: Model) -> str:
    """As sentence-transformers' folder says; the mean over the tokens where none is there."""
    path = model.source.folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    given = read_json(path)
    modes = [
        str(name)[13:] for name, on in given.items() if str(name)[:13] == "pooling_mode_" and on
    ]
    modes = [str(given["pooling_mode"])] if "pooling_mode" in given else modes
    known = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean",
             "lasttoken": "lasttoken"}  # fmt: skip
    if len(modes) != 1 or modes[0] not in known:
        raise Problem(
            f"{path}: pools by {' and '.join(modes) or 'nothing'}; expected the mean, the first "
            "token (cls) or the last"
        )
    return known[modes[0]]


def _same_nearest(answers: Any, dense: Any, passages: int) -> float:
    """The share of each query's nearest passages that stay, in the mean over queries."""
    nearest = [
        np.argsort(-(rows[passages:] @ rows[:passages].T), axis=1, kind="stable")[:, :NEAREST]
        for rows in (answers.astype(np.float64), dense.astype(np.float64))
    ]
    return float(np.mean([len(set(a) & set(d)) / NEAREST for a, d in zip(*nearest, strict=True)]))
