"""Training models of transformers through smyrf: gradients, dropout, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import BATCH, build, inputs_for, run, valid

import smyrf
import smyrf.transformers

LSH: dict[str, Any] = {"method": "lsh", "n_hashes": 2, "cluster_size": 4}


def in_training(name: str, dropout: float = 0.0) -> Any:
    """A model that trains, with dropout in attention only."""
    model = build(name).train()
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout if module_name.endswith("attention.self.dropout") else 0.0
    return model


def gradients(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a loss in which every valid output has a weight of its own."""
    model.zero_grad()
    out = valid(model(**inputs)[0], inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(8))
    (out * weights).sum().backward()
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def assert_near(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """To float32's rounding of a gradient, or of a tenth of the largest: some are 0 but for it."""
    assert got.keys() == want.keys()
    largest = max(float(gradient.norm()) for gradient in want.values())
    for name, gradient in want.items():
        assert (got[name] - gradient).norm() < 1e-5 * max(float(gradient.norm()), 0.1 * largest), (
            name
        )


@pytest.mark.parametrize("name", ["Bert", "BertDecoder", "ModernBert", "Llama", "Whisper", "ViT"])
def test_a_step_with_dense_has_the_gradients_of_eager_attention(name: str) -> None:
    model, inputs = in_training(name), inputs_for(name, "none" if name == "ViT" else "right")
    model.set_attn_implementation("eager")
    want = gradients(model, inputs)
    smyrf.transformers.enable(model, method="dense")
    with smyrf.collect() as records:
        got = gradients(model, inputs)
    assert records
    assert_near(got, want)


@pytest.mark.parametrize("options", [{"method": "dense"}, LSH], ids=["dense", "lsh"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_repeat_what_was_dropped(options: dict[str, Any], reentrant: bool) -> None:
    model, inputs = in_training("Bert", dropout=0.4), inputs_for("Bert", "left")
    smyrf.transformers.enable(model, **options)
    torch.manual_seed(1)
    want = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    torch.manual_seed(1)
    with smyrf.collect() as records:
        got = gradients(model, inputs)
    assert len(records) == 4, "two layers, each computed again"
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        assert torch.equal(got[name], gradient)


@pytest.mark.parametrize("options", [{}, {"method": "dense"}, LSH], ids=["auto", "dense", "lsh"])
def test_dropout_follows_pytorchs_generator_and_stops_in_evaluation(
    options: dict[str, Any],
) -> None:
    model, inputs = in_training("Bert", dropout=0.4), inputs_for("Bert", "none")
    smyrf.transformers.enable(model, **options)

    def seeded(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return run(model, inputs)

    first = seeded(1)
    assert torch.equal(seeded(1), first)
    assert (run(model, inputs) - first).abs().max() > 0.05, "the next call drops others"
    assert (seeded(2) - first).abs().max() > 0.05
    model.eval()
    assert torch.equal(run(model, inputs), run(model, inputs))


def test_dropout_is_that_of_the_model_in_the_mean() -> None:
    """Approximate: the first layer's attention, over many calls."""
    model, inputs = in_training("Bert", dropout=0.4), inputs_for("Bert", "none")
    smyrf.transformers.enable(model, method="dense")
    outputs = []
    layer = model.encoder.layer[0].attention.self
    layer.register_forward_hook(lambda module, given, result: outputs.append(result[0]))
    for _ in range(400):
        run(model, inputs)
    run(model.eval(), inputs)
    *dropped, plain = outputs
    assert (torch.stack(dropped).mean(0) - plain).norm() < 0.1 * plain.norm()
    assert (dropped[0] - plain).norm() > 0.3 * plain.norm()


def test_tree_says_what_to_do_about_dropout() -> None:
    model, inputs = in_training("Bert", dropout=0.1), inputs_for("Bert", "none")
    smyrf.transformers.enable(model, method="tree")
    says = r"attention\.self: got dropout=0\.1, .*attention dropout to 0 .*'dense' or 'lsh'"
    with pytest.raises(NotImplementedError, match=says):
        model(**inputs)
    model.eval()(**inputs)


@pytest.mark.parametrize(
    "options",
    [{**LSH, "cluster_size": 16}, {"method": "tree", "tolerance": 0.2, "max_density": 0.7}],
    ids=["lsh", "tree"],
)
def test_a_loop_of_steps_lowers_the_loss(options: dict[str, Any]) -> None:
    model = in_training("Bert")
    head = torch.nn.Linear(32, 100)
    ids = torch.randint(5, 90, (BATCH, 180), generator=torch.Generator().manual_seed(9))
    smyrf.transformers.enable(model, **options)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(12):
        # What stands two positions before: only attention can tell.
        logits = head(model(ids)[0][:, 2:])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, :-2].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize(("name", "dropout"), [("Bert", 0.0), ("Bert", 0.4), ("Llama", 0.0)])
@pytest.mark.filterwarnings("ignore")
def test_compiled_models_train_as_whole_graphs(name: str, dropout: float) -> None:
    torch._dynamo.reset()
    model, inputs = in_training(name, dropout), inputs_for(name, "left")
    smyrf.transformers.enable(model, method="dense")
    torch.manual_seed(1)
    want = gradients(model, inputs)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def found() -> dict[str, torch.Tensor]:
        got = {k.removeprefix("_orig_mod."): x for k, x in gradients(compiled, inputs).items()}
        # A graph gives 0, not None, to weights that the loss does not depend on.
        assert not any(got.pop(name).any() for name in got.keys() - want.keys())
        return got

    torch.manual_seed(1)
    assert_near(found(), want)
    if dropout:  # the seed is drawn in every call, not once for the graph
        with pytest.raises(AssertionError):
            assert_near(found(), want)
