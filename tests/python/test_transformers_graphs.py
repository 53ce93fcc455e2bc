"""Graphs of models with smyrf: `torch.jit.trace`, fake tensors and exporters."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import assert_close, build, inputs_for, run, valid
from torch._subclasses.fake_tensor import FakeTensorMode

import smyrf.transformers


class Outputs(torch.nn.Module):
    """A model that takes its inputs in an order and gives its first output alone."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        out: torch.Tensor = self.model(**given, use_cache=False)[0]
        return out


def example(inputs: dict[str, torch.Tensor], batch: int, length: int) -> dict[str, torch.Tensor]:
    """Part of the inputs, with padding where they have some in that part."""
    cut = {name: tensor[:batch] for name, tensor in inputs.items()}
    return {
        name: tensor[:, -length:].clone() if tensor.ndim == 2 else tensor
        for name, tensor in cut.items()
    }


@pytest.fixture(autouse=True)
def _no_tracer_warnings() -> Iterator[None]:
    # Models compare sizes, which the tracer warns of.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def traced(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    return torch.jit.trace(Outputs(model, list(inputs)), tuple(inputs.values()), check_trace=False)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "not"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Llama", "Mistral", "Llama4", "Bart"])
def test_a_trace_of_any_example_gives_what_the_model_gives(
    name: str, batch: int, padded: bool
) -> None:
    model, inputs = build(name), inputs_for(name, "left")
    given = example(inputs, batch, 6)
    if not padded:
        given = {k: torch.ones_like(v) if k.endswith("mask") else v for k, v in given.items()}
    want = run(model, inputs)
    model.set_attn_implementation("smyrf")
    with torch.no_grad():
        got = traced(model, given)(*inputs.values())
    assert_close(valid(got, inputs), valid(want, inputs))


@pytest.mark.parametrize("method", ["lsh", "tree"])
def test_a_trace_keeps_the_method(method: str) -> None:
    model, inputs = build("Bert"), inputs_for("Bert", "right")
    smyrf.transformers.enable(model, method=method, **{"lsh": {"cluster_size": 3}}.get(method, {}))
    want = run(model, inputs)
    with torch.no_grad():
        graph = traced(model, example(inputs, 1, 4))
        with smyrf.collect() as records:
            got = graph(*inputs.values())
    assert [record.statistics.method for record in records] == [method] * 2
    assert_close(valid(got, inputs), valid(want, inputs))


def test_a_trace_without_a_mask_and_of_one_token() -> None:
    for name in ("ViT", "Llama"):
        model, inputs = build(name), inputs_for(name, "none")
        want = run(model, inputs)
        model.set_attn_implementation("smyrf")
        with torch.no_grad():
            got = traced(model, example(inputs, 2, 1))(*inputs.values())
        assert_close(got, want)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["Bert", "Bart", "T5"])
def test_a_trace_made_with_gradients_passes_the_tracers_check(name: str) -> None:
    # Which repeats the trace without gradients, and compares.
    model, inputs = build(name), inputs_for(name, "right")
    want = run(model, inputs)
    model.set_attn_implementation("smyrf")
    graph = torch.jit.trace(Outputs(model, list(inputs)), tuple(inputs.values()))
    with torch.no_grad():
        assert_close(valid(graph(*inputs.values()), inputs), valid(want, inputs))


def test_a_traced_bias_has_no_gradient_and_says_so() -> None:
    model, inputs = build("T5"), inputs_for("T5", "right")
    model.set_attn_implementation("smyrf")
    out = traced(model, inputs)(*inputs.values())
    with pytest.raises(RuntimeError, match="position_bias or mask that requires a gradient"):
        out.sum().backward()


def test_a_trace_without_a_tolerance_is_exact() -> None:
    q = torch.randn(1, 1, 2100, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), smyrf.collect() as records:
        graph = torch.jit.trace(lambda q: smyrf.attention(q, q, q), (q,), check_trace=False)
        graph(q)
    assert [record.statistics.method for record in records][-1] == "dense"


def test_a_trace_does_not_drop_the_same_weights_in_every_call() -> None:
    model, inputs = build("Bert").train(), inputs_for("Bert", "left")
    model.set_attn_implementation("smyrf")
    with pytest.raises(NotImplementedError, match=r"call model\.eval\(\) before"):
        traced(model, inputs)


@pytest.mark.parametrize("name", ["Bert", "Llama", "Mistral"])
def test_fake_tensors_give_a_fake_output(name: str) -> None:
    model, inputs = build(name), inputs_for(name, "left")
    want = run(model, inputs)
    model.set_attn_implementation("smyrf")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        got = run(model, {key: mode.from_tensor(tensor) for key, tensor in inputs.items()})
    assert got.shape == want.shape
    assert got.dtype == want.dtype


def test_models_on_the_meta_device_give_the_shapes_of_sdpa() -> None:
    model, inputs = build("Mistral").to("meta"), inputs_for("Mistral", "left")
    inputs = {name: tensor.to("meta") for name, tensor in inputs.items()}
    want = run(model, inputs)
    model.set_attn_implementation("smyrf")
    got = run(model, inputs)
    assert (got.shape, got.device) == (want.shape, want.device)


def test_an_exported_program_takes_other_sizes() -> None:
    model, inputs = build("Llama"), inputs_for("Llama", "left")
    want = run(model, inputs)
    model.set_attn_implementation("smyrf")
    sizes = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=2, max=64)}
    with torch.no_grad():
        program = torch.export.export(
            Outputs(model, list(inputs)),
            tuple(example(inputs, 2, 6).values()),
            dynamic_shapes={"inputs": (sizes, sizes)},
        )
        got = program.module()(*inputs.values())
    assert_close(valid(got, inputs), valid(want, inputs))


def openvino_convert(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Traces the model as `openvino.convert_model` does, in a module of that name."""
    scope = {"__name__": "openvino.frontend.pytorch", "traced": traced}
    exec("def convert(*arguments): return traced(*arguments)", scope)
    scope["convert"](model, inputs)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("exporter", "export"),
    [
        (
            "ONNX",
            lambda model, inputs: torch.onnx.export(
                Outputs(model, list(inputs)), tuple(inputs.values()), io.BytesIO(), dynamo=False
            ),
        ),
        ("OpenVINO", openvino_convert),
    ],
)
def test_exporters_say_disable_first(exporter: str, export: Any) -> None:
    model, inputs = build("Bert"), inputs_for("Bert", "left")
    smyrf.transformers.enable(model)
    said = rf"self: {exporter} has no .*smyrf\.transformers\.disable\(model\)"
    with pytest.raises(NotImplementedError, match=said):
        export(model, inputs)
