"""Framework: `replace_sdpa` in models that call PyTorch's attention themselves."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import smyrf
from smyrf.torch import replace_sdpa

ORIGINAL = functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    yield
    assert functional.scaled_dot_product_attention is ORIGINAL
    assert torch.backends.mha.get_fastpath_enabled() == fast


def tensors(queries: int = 20, keys: int = 20, **to: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=generator).to(**to) for n in (queries, keys, keys)]


def sdpa(*arguments: Any, **options: Any) -> torch.Tensor:
    return functional.scaled_dot_product_attention(*arguments, **options)


SEEN = torch.rand(20, 20, generator=torch.Generator().manual_seed(1)) < 0.7
SEEN[3] = False  # a query that sees nothing

TAKEN: dict[str, tuple[Any, ...]] = {
    "plain": (tensors(), {}),
    "causal": (tensors(), {"is_causal": True}),
    "more keys": (tensors(20, 33), {"is_causal": True}),
    "more queries": (tensors(33, 20), {"is_causal": True, "scale": 0.3}),
    "no keys": (tensors(5, 0), {"is_causal": True}),
    "bool mask": (tensors(), {"attn_mask": SEEN}),
    "float mask": (tensors(), {"attn_mask": SEEN[None, None].float().log()}),
    "lower right": (tensors(20, 33), {"attn_mask": causal_lower_right(20, 33)}),
    "upper left": (tensors(20, 33), {"attn_mask": causal_upper_left(20, 33)}),
    "broadcast": ([tensors()[0], *(x[:1] for x in tensors()[1:])], {}),
    "three": ([x[0] for x in tensors(9, 20)], {"is_causal": True}),
    "grouped": (
        [tensors()[0], *(x[:, :1] for x in tensors()[1:])],
        {"enable_gqa": True, "is_causal": True},
    ),
    "bfloat16": (tensors(dtype=torch.bfloat16), {}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_calls_mean_the_same(name: str) -> None:
    qkv, options = TAKEN[name]
    given, wanted = ([x.clone().requires_grad_() for x in qkv] for _ in range(2))
    theirs = sdpa(*wanted, **options)
    with replace_sdpa() as replaced:
        ours = sdpa(*given, **options)
    assert (replaced.taken, replaced.passed.total()) == (1, 0)
    tolerance = 2e-2 if qkv[0].dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    sizes = zip(ours.stride(), theirs.stride(), ours.shape, strict=True)
    assert all(a == b for a, b, size in sizes if size > 1)
    gradients = [torch.autograd.grad(out.sum(), x) for out, x in ((ours, given), (theirs, wanted))]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5 * tolerance)


class Tagged(torch.Tensor):
    pass


PASSED: dict[str, tuple[Any, ...]] = {
    "dropout_p": (tensors(), {"dropout_p": 1.0}, {}),
    "dtype float64": (tensors(dtype=torch.float64), {}, {}),
    "device meta": (tensors(device="meta"), {}, {}),
    "a Tagged": ([x.as_subclass(Tagged) for x in tensors()], {}, {}),
    "is_causal with attn_mask": (tensors(), {"attn_mask": SEEN, "is_causal": True}, {}),
    "attn_mask requires a gradient": (
        tensors(),
        {"attn_mask": torch.zeros(20, 20, requires_grad=True)},
        {},
    ),
    "attn_mask with method tree": (tensors(), {"attn_mask": SEEN}, {"method": "tree"}),
    "is_causal with method tree": (tensors(), {"is_causal": True}, {"method": "tree"}),
    "is_causal with method lsh": (tensors(), {"is_causal": True}, {"method": "lsh"}),
    "scale: got 1e+39": (tensors(), {"scale": 1e39}, {}),
}


@pytest.mark.parametrize("reason", PASSED)
def test_what_smyrf_cannot_take_is_pytorchs_and_counted(reason: str) -> None:
    qkv, options, method = PASSED[reason]
    theirs = sdpa(*qkv, **options)
    with replace_sdpa(**method) as replaced:
        ours = sdpa(*qkv, **options)
    assert replaced.taken == 0
    (said, count), *rest = replaced.passed.items()
    assert said.startswith(reason)
    assert count == 1
    assert not rest
    assert ours.shape == theirs.shape
    if ours.device.type != "meta":
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_what_pytorch_refuses_stays_refused() -> None:
    query, key, value = tensors()
    for arguments in (
        (query, key[..., :7], value),
        (query, key, value[:, :2]),
        (query.half(), key, value),
        (query, key, value, torch.zeros(20)),
        (query, key, value, torch.zeros(5, 1, 1, 20, 20)),
        (query[0, 0, 0], key, value),
        (query.long(), key.long(), value.long()),
    ):
        with replace_sdpa() as replaced, pytest.raises((RuntimeError, IndexError)):
            sdpa(*arguments)
        assert (replaced.taken, replaced.passed.total()) == (0, 1)


def test_method_and_dials_reach_the_call() -> None:
    qkv = [torch.randn(1, 1, 600, 8, generator=torch.Generator().manual_seed(0))] * 3
    options = {"method": "tree", "tolerance": 0.2, "seed": 3}
    with replace_sdpa(**options) as replaced, smyrf.collect() as records:
        out = sdpa(*qkv)
    assert torch.equal(out, smyrf.attention(*qkv, **options))
    assert [record.statistics.method for record in records] == ["tree"]
    assert "method='tree', tolerance=0.2, seed=3): undone, 1 taken, 0 passed" in repr(replaced)
    with pytest.raises(ValueError, match=r"^n_hashes: is a dial of method lsh"):
        replace_sdpa(n_hashes=3)
    with pytest.raises(TypeError, match=r"^window: unknown dial"):
        replace_sdpa(window=(1, 2))


def test_on_off_nested_and_repeated() -> None:
    qkv = tensors()
    first = replace_sdpa()
    second = replace_sdpa("dense")
    sdpa(*qkv)
    assert (first.taken, second.taken) == (0, 1)
    first.undo()
    first.undo()
    sdpa(*qkv)
    assert (first.taken, second.taken) == (0, 2)
    second.undo()
    sdpa(*qkv)
    assert (first.taken, second.taken) == (0, 2)
    with first, first:
        sdpa(*qkv)
    sdpa(*qkv)
    assert first.taken == 1
    with pytest.raises(RuntimeError, match="within"), replace_sdpa():
        raise RuntimeError("within")
    # A name bound while it was in place goes on working.
    with replace_sdpa() as replaced:
        bound = functional.scaled_dot_product_attention
    assert torch.equal(bound(*qkv), ORIGINAL(*qkv))
    assert replaced.taken == 0


def test_names_that_modules_imported_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("imported_by_name")
    exec("from torch.nn.functional import scaled_dot_product_attention as attend", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with replace_sdpa() as replaced:
        module.attend(*tensors())
    assert replaced.taken == 1
    assert module.attend is ORIGINAL


def test_threads_share_it_and_lose_no_count() -> None:
    qkv = tensors(4, 4)

    def work() -> None:
        for _ in range(50):
            sdpa(*qkv)
            sdpa(*qkv, dropout_p=0.1)
            replace_sdpa().undo()

    with replace_sdpa() as replaced:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Calls between a replacement of another thread and its undo are counted there.
    assert 0 < replaced.taken <= 200
    with replace_sdpa() as replaced:
        threads = [threading.Thread(target=lambda: [sdpa(*qkv) for _ in range(50)]) for _ in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert replaced.taken == 200


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_transformer_encoder(training: bool, padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).train(training)
    source = torch.randn(3, 10, 16)
    padding = torch.arange(10) >= torch.tensor([[10], [7], [4]]) if padded else None
    valid = torch.ones(3, 10, dtype=torch.bool) if padding is None else ~padding
    with torch.no_grad():
        theirs = model(source, src_key_padding_mask=padding)
        with replace_sdpa() as replaced:
            ours = model(source, src_key_padding_mask=padding)
    assert replaced.taken == 2
    assert not replaced.passed
    torch.testing.assert_close(ours[valid], theirs[valid], rtol=0, atol=1e-5)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(need_weights: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 2, dropout=0.1).eval()
    source = torch.randn(10, 3, 16, requires_grad=True)
    mask = torch.ones(10, 10, dtype=torch.bool).triu(1)
    arguments = {"need_weights": need_weights, "attn_mask": mask, "is_causal": True}
    theirs = model(source, source, source, **arguments)[0]
    with replace_sdpa() as replaced:
        ours = model(source, source, source, **arguments)[0]
        model.train()
        model(source, source, source, need_weights=False)
    assert replaced.taken == (0 if need_weights else 1)  # with weights nobody calls it
    assert replaced.passed == {"dropout_p": 1}
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), source)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_compiled_graphs() -> None:
    def model(query: Any, key: Any, value: Any, **options: Any) -> Any:
        return functional.scaled_dot_product_attention(2 * query, key, value, **options) + 1

    for qkv, options in (TAKEN["plain"], TAKEN["more keys"], TAKEN["bool mask"]):
        torch._dynamo.reset()
        expected = model(*qkv, **options)
        with replace_sdpa() as replaced:
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            targets: list[str] = []

            def backend(graph: Any, _: Any, targets: list[str] = targets) -> Any:
                targets += [str(node.target) for node in graph.graph.nodes]
                return graph.forward

            torch.testing.assert_close(compiled(*qkv, **options), expected, rtol=0, atol=1e-5)
            torch._dynamo.reset()
            torch.compile(model, backend=backend, fullgraph=True)(*qkv, **options)
            assert any("smyrf" in target for target in targets)
            dropped = torch.compile(model, backend="aot_eager", fullgraph=True)
            assert (dropped(*qkv, dropout_p=1.0) == 1).all()
        assert replaced.taken == 0
    torch._dynamo.reset()


def test_transforms_of_torch_func_are_pytorchs() -> None:
    query, key, value = tensors()
    with replace_sdpa() as replaced:
        ours = torch.func.grad(lambda q: sdpa(q, key, value).square().sum())(query)
    theirs = torch.func.grad(lambda q: sdpa(q, key, value).square().sum())(query)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert replaced.passed.total() == 1


def test_without_torch_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import smyrf.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: smyrf.torch needs PyTorch; type: pip install 'torch>=" in done.stderr
