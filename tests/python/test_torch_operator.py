"""Framework: what works on operators sees a call as one. Other calls are not dispatched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import smyrf
import smyrf.torch  # registers the operator
from smyrf import _core, _tensors

torch.manual_seed(0)
ROWS = torch.randn(2, 3, 5, 16)
NAME = "smyrf.attention"


class _Named:
    """Keeps the names of the functions that a mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _call(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class DispatchMode(_Named, TorchDispatchMode):
    __torch_dispatch__ = _Named._call


class FunctionMode(_Named, TorchFunctionMode):
    __torch_function__ = _Named._call


def call(rows: torch.Tensor) -> torch.Tensor:
    return smyrf.attention(rows, rows, rows)


def seen_by(mode: AbstractContextManager[Any]) -> str:
    with mode as inside:
        call(ROWS)
    return " ".join(inside.names)


def profiled() -> str:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call(ROWS)
    return " ".join(event.key for event in profiler.key_averages()).replace("::", ".")


def traced_by_make_fx(pre_dispatch: bool) -> str:
    return str(make_fx(call, pre_dispatch=pre_dispatch)(ROWS).graph)


def traced_by_jit() -> str:
    return str(torch.jit.trace(call, ROWS).graph).replace("::", ".")


SIGHTS: dict[str, Callable[[], str]] = {
    "dispatch mode": lambda: seen_by(DispatchMode()),
    "function mode": lambda: seen_by(FunctionMode()),
    "profiler": profiled,
    "make_fx": lambda: traced_by_make_fx(False),
    "make_fx, pre-dispatch": lambda: traced_by_make_fx(True),
    "torch.jit.trace": traced_by_jit,
}


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_what_works_on_operators_sees_one(sight: str) -> None:
    assert NAME in SIGHTS[sight]()


def test_other_calls_are_not_dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("dispatched")

    monkeypatch.setattr(_tensors, "call_operator", refuse)
    parameter = torch.nn.Parameter(ROWS)
    mask = torch.ones(5, 5, dtype=torch.bool)
    for rows in (ROWS, ROWS.half(), ROWS.mT.contiguous().mT):
        smyrf.attention(rows, rows, rows, mask)
    with torch.no_grad():
        call(parameter)
    with torch.inference_mode():
        assert call(ROWS).is_inference()
    with torch.autocast("cpu", torch.bfloat16):
        assert call(ROWS).dtype == torch.bfloat16
    (call(parameter) * ROWS).sum().backward()
    with pytest.raises(AssertionError, match="dispatched"), DispatchMode():
        call(ROWS)


INPUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: ROWS,
    "split heads": lambda: torch.randn(2, 5, 3, 16).transpose(1, 2),
    "columns": lambda: torch.randn(2, 3, 16, 5).mT,
    "bfloat16": ROWS.bfloat16,
    "negated when read": lambda: torch.complex(ROWS, ROWS).conj().imag,
    "zeros without memory": lambda: torch._efficientzerotensor((2, 3, 5, 16)),
    "no batch": lambda: ROWS[:0],
}


@pytest.mark.parametrize("name", INPUTS)
def test_bits_and_strides_are_those_of_the_operator(name: str) -> None:
    rows = INPUTS[name]()
    got = smyrf.attention(rows, rows, rows, return_lse=True)
    with DispatchMode() as mode:
        want = smyrf.attention(rows, rows, rows, return_lse=True)
    assert any(NAME in seen for seen in mode.names)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == theirs.dtype
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("options", [{}, {"method": "tree", "tolerance": 0.1}], ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_backward_takes_a_batch_of_gradients(options: dict[str, Any]) -> None:
    rows = ROWS[:1, :1].clone().requires_grad_()
    out = smyrf.attention(rows, rows, rows, **options)
    wanted = torch.stack([torch.ones_like(out), torch.randn_like(out)])
    batched = torch.autograd.grad(out, rows, wanted, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(out, rows, one, retain_graph=True)[0] for one in wanted]
    assert torch.equal(batched, torch.stack(one_by_one))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_backward_holds_the_operator() -> None:
    torch._dynamo.reset()
    rows = ROWS.clone().requires_grad_()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph

    out = smyrf.attention(rows, rows, rows)
    want = torch.autograd.grad(out.sum(), rows, retain_graph=True)[0]
    with compiled_autograd._enable(torch.compile(backend=backend)):
        out.sum().backward()
    assert torch.equal(rows.grad, want)
    assert "smyrf.attention_backward" in "".join(graphs)


def test_a_profile_shows_calls_with_gradients_and_keeps_their_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.sin(torch.arange(4096.0)[:, None] * torch.linspace(0.001, 0.01, 16))[None, None]
    rows.requires_grad_()
    plans = []
    backward = _core.attention_backward
    monkeypatch.setattr(
        _core, "attention_backward", lambda *given: (plans.append(given[10]), backward(*given))
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        smyrf.attention(rows, rows, rows, method="tree", tolerance=0.2).sum().backward()
    assert any(event.key == "SmyrfAttention" for event in profiler.key_averages())
    assert [plan.method for plan in plans] == ["tree"]


def test_a_tensor_without_memory_is_refused_by_calls_that_no_operator_takes() -> None:
    rows = torch._efficientzerotensor((2, 3, 5, 16))
    for given in ((rows, ROWS, ROWS), (ROWS, ROWS, rows)):
        with pytest.raises(TypeError, match=r"has no memory.*\.clone\(\)"):
            smyrf.attention(*given, return_stats=True)


def test_the_operator_takes_calls_with_numbers_of_numpys() -> None:
    options: Any = {"scale": np.float32(0.5), "seed": np.int64(3), "is_causal": np.True_}
    want = smyrf.attention(ROWS, ROWS, ROWS, **options)
    with DispatchMode():
        assert torch.equal(smyrf.attention(ROWS, ROWS, ROWS, **options), want)


@pytest.mark.parametrize("value", [None, "yes", 1])
def test_a_flag_that_is_none_has_one_sentence(value: Any) -> None:
    sentences = []
    for mode in (DispatchMode(), torch.no_grad()):
        with mode, pytest.raises(TypeError) as error:
            smyrf.attention(ROWS, ROWS, ROWS, is_causal=value)
        sentences.append(str(error.value))
    assert sentences == [f"is_causal: got {value!r}, expected True or False"] * 2


@pytest.mark.parametrize("tracer", ["jit.trace", "make_fx"])
@pytest.mark.parametrize("what", ["plan", "return_stats", "out", "merge"])
def test_what_no_graph_can_hold_is_refused_by_tracers(what: str, tracer: str) -> None:
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    given: dict[str, Any] = {
        "plan": {"plan": smyrf.plan(q, k, value=v, method="dense")},
        "return_stats": {"return_stats": True},
        "out": {"out": torch.empty_like(q)},
    }.get(what, {})

    def call(query: torch.Tensor) -> Any:
        if what == "merge":
            out, lse = smyrf.attention(query, k, v, return_lse=True)
            return smyrf.merge(out, lse, out, lse)
        result = smyrf.attention(query, k, v, **given)
        return result[0] if what == "return_stats" else result

    trace = make_fx(call) if tracer == "make_fx" else lambda rows: torch.jit.trace(call, (rows,))
    with pytest.raises(NotImplementedError, match="can't be part of a compiled graph or a trace"):
        trace(q)
