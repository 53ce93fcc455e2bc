"""One model type: built small, run by transformers' attention and by smyrf's, and compared."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.auto import modeling_auto

import smyrf.transformers
from sweep import configs, inputs, special
from sweep.bounds import BOUND

WAYS: dict[str, dict[str, Any]] = {
    "loaded": {},
    "dense": {"method": "dense"},
    "tree": {"method": "tree", "tolerance": 0},
}
PADDINGS = ("none", "right", "left")
LARGEST = 61_000_000  # parameters
WORKS, FORWARD, REFUSES, WRONG = "works", "forward only", "refuses", "WRONG"
UNCLEAR, UNBUILT = "unclear", "not built"


@dataclass
class Result:
    """What one way to smyrf did at one padding; `calls` of its attention function in a forward."""

    verdict: str
    deviation: float = 0.0
    why: str = ""
    calls: int = 0


@dataclass
class Row:
    """All that is known of one model type."""

    model_type: str
    model_class: str = ""
    verdict: str = UNBUILT
    why: str = ""
    deviation: float = 0.0
    references: list[str] = field(default_factory=list)  # of sdpa and eager, those that run
    calls: int = 0  # of smyrf in one forward
    results: dict[str, dict[str, Result]] = field(default_factory=dict)  # by padding and way
    inputs: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Unbuilt(Exception):
    """The model can't be made small, or transformers' own attention doesn't run it."""


_calls = 0


def count_calls() -> None:
    """Count calls of smyrf's attention function, so that a row can say whether it was taken."""
    function = AttentionInterface()[smyrf.transformers.NAME]

    def counted(*args: Any, **kwargs: Any) -> Any:
        global _calls
        _calls += 1
        return function(*args, **kwargs)

    AttentionInterface.register(smyrf.transformers.NAME, counted)


def first_sentence(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return re.split(r"(?<=[a-z)'])[.] ", text)[0][:300]


def classes(model_type: str, config: Any) -> Iterator[type[nn.Module]]:
    """The base model's class, then those with heads."""
    names = [n for n in dir(modeling_auto) if re.fullmatch(r"MODEL_\w*MAPPING_NAMES", n)]
    names.sort(key=lambda name: (name != "MODEL_MAPPING_NAMES", name))
    seen: set[str] = set()
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    for mapping in names:
        found = getattr(modeling_auto, mapping).get(model_type, ())
        for name in (found,) if isinstance(found, str) else found:
            if name not in seen and hasattr(module, name):
                seen.add(name)
                yield getattr(module, name)
    for name, kind in sorted(vars(module).items()):
        if name in seen or name.endswith("PreTrainedModel") or not isinstance(kind, type):
            continue
        if issubclass(kind, PreTrainedModel) and kind.config_class is type(config):
            yield kind


def build(kind: Any, config: Any, implementation: str) -> nn.Module:
    """A model with transformers' own choice of everything but the attention, in eval mode."""
    torch.manual_seed(7)
    model: nn.Module = kind._from_config(
        copy.deepcopy(config), attn_implementation=implementation, dtype=torch.float32
    )
    return model.eval()


def spread_weights(model: nn.Module) -> None:
    """Weights so wide that attention is far from flat, and no branch is multiplied by nearly 0."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.numel() or re.search(r"A_log|dt_bias|\.D$|logit_scale", name):
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                inner = weight[0].numel()
                gain = 0.5 * inner**0.5 if "embed" in name and weight.ndim == 2 else 1.1
                weight.copy_(gain / inner**0.5 * noise)
            elif float(weight.std(correction=0)) < 1e-6:
                constant = float(weight.flatten()[0])
                if abs(constant) < 0.1:
                    weight.copy_(constant + 0.3 * noise)


def tensors(output: Any) -> dict[str, torch.Tensor]:
    """The outputs that can be compared, by name; without caches, masks and weights."""
    if isinstance(output, torch.Tensor):
        return {"": output} if output.is_floating_point() and output.numel() else {}
    if isinstance(output, Mapping):
        pairs = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, (list, tuple)):
        pairs = [(str(index), value) for index, value in enumerate(output)]
    else:
        return {}
    return {
        f"{name}.{inner}" if inner else name: tensor
        for name, value in pairs
        if not re.search(r"past|mask|attentions", name)
        for inner, tensor in tensors(value).items()
    }


@dataclass
class Run:
    """A model's outputs at rows that hold text, and gradients of its parameters.

    Attributes:
        without_grad: outputs under `torch.no_grad`.
        outputs, gradients: empty where forward or backward with gradients raised an error.
        error: its first sentence.
    """

    without_grad: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    error: str = ""


def forward(model: nn.Module, given: inputs.Inputs) -> dict[str, torch.Tensor]:
    """A model's outputs at rows that hold text.

    Raises:
        Exception: whatever the model raises.
    """
    torch.manual_seed(5)  # some models draw random numbers in eval mode, too
    copied = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
    found = tensors(model(**copied))
    rows = {name: inputs.valid_rows(given, tensor) for name, tensor in found.items()}
    known = {name: found[name][valid] for name, valid in rows.items() if valid is not None}
    # With padding, what is pooled may come from rows of padding, which nobody reads.
    return known or found


def run(model: nn.Module, given: inputs.Inputs) -> Run:
    """Forward with and without gradients, and backward.

    Raises:
        Exception: whatever the model raises in the forward without gradients.
    """
    with torch.no_grad():
        found = Run(forward(model, given))
    model.zero_grad(set_to_none=True)
    try:
        found.outputs = forward(model, given)
        _backward(found.outputs)
    except Exception as error:
        found.error = first_sentence(error)
        return found
    found.outputs = {name: tensor.detach() for name, tensor in found.outputs.items()}
    found.gradients = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    return found


def _backward(outputs: Mapping[str, torch.Tensor]) -> None:
    """Gradients of a fixed random sum of all outputs that are finite."""
    generator = torch.Generator().manual_seed(13)
    loss = torch.zeros(())
    for tensor in outputs.values():
        weights = torch.randn(tensor.shape, generator=generator)
        if tensor.requires_grad:
            loss = loss + (torch.where(torch.isfinite(tensor), tensor, 0) * weights).sum()
    if loss.requires_grad:
        loss.backward()


def deviation(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> float:
    """The largest difference, in standard deviations of the tensor that it is in."""
    if got.keys() != want.keys():
        return float("inf")
    largest = 0.0
    spreads = {name: _spread(tensor) for name, tensor in want.items()}
    # Gradients that are all but 0 are rounding: a hundredth of the usual is their least spread.
    least = 0.01 * float(torch.tensor([*spreads.values(), 0.0]).square().mean().sqrt())
    for name, tensor in want.items():
        other = got[name]
        if other.shape != tensor.shape or not torch.equal(other.isnan(), tensor.isnan()):
            return float("inf")
        difference = torch.where(other == tensor, 0, other - tensor).nan_to_num(0)
        if difference.numel():
            scale = max(spreads[name], least, 1e-30)
            largest = max(largest, float(difference.abs().max()) / scale)
    return largest


def _spread(tensor: torch.Tensor) -> float:
    finite = tensor[torch.isfinite(tensor)].float()
    return float(finite.std()) if finite.numel() > 1 else float(finite.abs().sum())


def difference(got: Run, want: Run, names: set[str]) -> float:
    """The largest deviation of these outputs, and of gradients where both runs have them."""

    def some(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in outputs.items() if name in names}

    far = deviation(some(got.without_grad), some(want.without_grad))
    if got.outputs and want.outputs:
        far = max(far, deviation(some(got.outputs), some(want.outputs)))
    if got.gradients and want.gradients:
        far = max(far, deviation(got.gradients, want.gradients))
    return far


@dataclass
class Subject:
    """A model type that runs by transformers' own attention."""

    kind: Any
    config: Any
    state: dict[str, torch.Tensor]
    given: inputs.Inputs
    references: list[str]
    models: dict[str, nn.Module] = field(default_factory=dict)  # those made already

    def model(self, implementation: str, use: str = "") -> nn.Module:
        """The model with an implementation; another one for each use."""
        name = implementation + use
        if name not in self.models:
            model = build(self.kind, self.config, implementation)
            model.load_state_dict(self.state)
            self.models[name] = model
        return self.models[name]


def find(model_type: str) -> Subject:
    """The first class and size of a model type that transformers' own attention runs.

    Raises:
        Unbuilt: with the first error of each try.
    """
    if model_type in special.UNBUILT:
        raise Unbuilt(special.UNBUILT[model_type])
    errors: list[str] = []
    for level in (0, 1):
        try:
            config = configs.small(model_type, level)
        except Exception as error:
            errors.append(f"config: {first_sentence(error)}")
            continue
        found = list(classes(model_type, config))[:3]
        if not found:
            errors.append("transformers has no class for it here")
        for kind in found:
            try:
                return _subject(kind, config, model_type, level)
            except Exception as error:
                errors.append(f"{kind.__name__}: {first_sentence(error)}")
    raise Unbuilt("; ".join(dict.fromkeys(errors)))


def _subject(kind: Any, config: Any, model_type: str, level: int) -> Subject:
    try:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in kind(copy.deepcopy(config)).parameters())
    except Exception:
        if level:  # it may be huge
            raise
        size = 0
    if size > LARGEST:
        raise Unbuilt(f"no rule makes it small: {size / 1e6:.0f} million parameters")
    models: dict[str, nn.Module] = {}
    errors = []
    for implementation in ("sdpa", "eager"):
        try:
            models[implementation] = build(kind, config, implementation)
        except Exception as error:
            errors.append(first_sentence(error))
    if not models:
        raise Unbuilt(errors[-1])
    model = next(iter(models.values()))
    spread_weights(model)
    given = _accepted(model, model_type)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Subject(kind, config, state, given, list(models))


def _accepted(model: nn.Module, model_type: str) -> inputs.Inputs:
    first = None
    for shapes, given in inputs.attempts(model, model_type):
        try:
            return _try(model, given)
        except Exception as error:
            first = first or error
            counts = re.search(r"tokens\D{0,20}(\d+)\D{1,40}?(\d+)", str(error))
            if counts is None or not int(counts[2]):
                continue
            try:
                for total in {int(counts[2]), int(counts[2]) // configs.WIDTH}:
                    if total and total % inputs.BATCH == 0:
                        more = inputs.with_image_tokens(shapes, given, total // inputs.BATCH)
                        return _try(model, more)
            except Exception:
                continue
    raise first or Unbuilt("no inputs known")


def _try(model: nn.Module, given: inputs.Inputs) -> inputs.Inputs:
    found = run(model, given).without_grad
    if not any(_spread(tensor) > 0 for tensor in found.values()):
        raise Unbuilt("outputs don't vary")
    if not any(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise Unbuilt("outputs are not finite")
    return given


def check(model_type: str) -> Row:
    """Build a model type and try every padding and every way to smyrf.

    Never raises but for what ends a process.
    """
    warnings.simplefilter("ignore")
    row = Row(model_type)
    try:
        subject = find(model_type)
    except Exception as error:
        row.why = str(error) if isinstance(error, Unbuilt) else first_sentence(error)
        return row
    row.model_class, row.inputs = subject.kind.__name__, list(subject.given)
    row.references = subject.references
    for padding in PADDINGS:
        given = inputs.pad(subject.model(subject.references[0]), subject.given, padding)
        if given is not None:
            row.results[padding] = _check_padding(subject, given)
    summarise(row)
    return row


def _check_padding(subject: Subject, given: inputs.Inputs) -> dict[str, Result]:
    runs: list[Run] = []
    errors = []
    for implementation in subject.references:
        try:
            runs.append(run(subject.model(implementation), given))
        except Exception as error:
            errors.append(f"{implementation}: {first_sentence(error)}")
    if not runs:
        return {"loaded": Result(UNBUILT, why=errors[0])}
    agreed, apart = _agreement(runs[0], runs[-1])
    if not agreed:
        return {"loaded": Result(UNCLEAR, apart, "sdpa and eager differ from each other")}
    if deviation(runs[-1].gradients, runs[0].gradients) >= BOUND:
        for one in runs:
            one.gradients = {}
    # A method that is told of padding gives its rows no output. Where all that a model returns is
    # pooled, perhaps from such a row, there is nothing to compare.
    padded = given is not subject.given
    pooled = all(len(tensor) == inputs.BATCH for tensor in runs[0].without_grad.values())
    reads_padding = pooled or subject.config.model_type in special.PADDING_IS_READ
    return {
        way: _check_way(subject, given, options, runs, agreed)
        for way, options in WAYS.items()
        if way != "tree" or not (padded and reads_padding)
    }


def _agreement(first: Run, last: Run) -> tuple[set[str], float]:
    """Names of outputs in which transformers' own ways agree, and how far others are apart."""
    apart = {
        name: deviation({name: last.without_grad[name]}, {name: tensor})
        for name, tensor in first.without_grad.items()
        if name in last.without_grad and _spread(tensor) > 0
    }
    return {name for name, far in apart.items() if far < BOUND}, max(apart.values(), default=0.0)


def _check_way(
    subject: Subject,
    given: inputs.Inputs,
    options: dict[str, Any],
    runs: list[Run],
    agreed: set[str],
) -> Result:
    global _calls
    _calls = 0
    try:
        if options:
            model = subject.model(subject.references[0], use=" enabled")
            smyrf.transformers.enable(model, **options)
        else:
            model = subject.model(smyrf.transformers.NAME)
        got = run(model, given)
    except Exception as error:
        return Result(REFUSES, why=first_sentence(error), calls=_calls)
    far = min(difference(got, one, agreed) for one in runs)
    if far >= BOUND:
        return Result(WRONG, far, calls=_calls // 2)
    if got.error and not runs[0].error:
        return Result(FORWARD, far, got.error, _calls // 2)
    return Result(WORKS, far, calls=_calls // 2)


def summarise(row: Row) -> None:
    """Give a row the worst verdict of its parts; `tree` may refuse what its contract says."""
    found = [
        (padding, way, result)
        for padding, results in row.results.items()
        for way, result in results.items()
    ]
    row.calls = max((result.calls for *_, result in found), default=0)
    worked = [result.deviation for *_, result in found if result.verdict == WORKS]
    row.deviation = max(worked, default=0.0)
    for verdict in (WRONG, REFUSES, FORWARD, UNCLEAR, WORKS, UNBUILT):
        of = [
            (padding, way, result)
            for padding, way, result in found
            if result.verdict == verdict and not (verdict in (REFUSES, FORWARD) and way == "tree")
        ]
        if of:
            *_, result = of[0]
            row.verdict = verdict
            if verdict == WRONG:
                result = max((one for *_, one in of), key=lambda one: one.deviation)
                where = ", ".join(f"{w} {p}" for p, w, _ in of)
                row.why = f"off by {result.deviation:.2g} deviations ({where})"
            elif verdict != WORKS:
                row.why = result.why
            return
