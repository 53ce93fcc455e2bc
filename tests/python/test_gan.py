"""Framework: BigGAN's self-attention switched in place and back, and moved.

The real classes with seeded random weights and gamma 1 (see `small_generator`): what is learned
from photographs is not tested here.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from typing import Any

import pytest
import torch
from pytorch_pretrained_biggan import BigGAN
from pytorch_pretrained_biggan.model import SelfAttn
from small_generator import LAYERS_256, attention_of, build, generate

import smyrf
import smyrf.gan


@pytest.fixture(scope="module")
def generator() -> Any:
    return build(16)


@pytest.fixture
def model(generator: Any) -> Any:
    return copy.deepcopy(generator)


def test_dense_is_the_original_to_rounding(model: Any) -> None:
    want = generate(model)
    gamma = attention_of(model).gamma
    with torch.no_grad():
        gamma.zero_()
    assert (generate(model) - want).std() > 0.02, "attention doesn't count"
    with torch.no_grad():
        gamma.fill_(1)
    assert smyrf.gan.enable(model, method="dense") == ["generator.layers.8"]
    with smyrf.collect() as records:
        torch.testing.assert_close(generate(model), want, rtol=0, atol=2e-6)
    (record,) = records
    assert record.layer == "generator.layers.8"
    assert record.statistics.method == "dense"
    assert record.shape == (2, 1, 1, 64 * 64, 32 * 32, 4, 16)


@pytest.mark.parametrize("tolerance", [0.1, 0.03])
def test_tree_meets_its_tolerance(model: Any, tolerance: float) -> None:
    smyrf.gan.enable(model, method="dense")
    dense = generate(model)
    smyrf.gan.enable(model, method="tree", tolerance=tolerance)
    with smyrf.collect(errors=True) as records:
        images = generate(model)
    (record,) = records
    assert record.relative_error is not None
    assert record.statistics.density.max() < 0.2
    assert 0.1 * tolerance < record.relative_error.max() < tolerance
    assert 0 < (images - dense).norm() / dense.norm() < tolerance


def test_auto_takes_tree_at_a_high_resolution(model: Any) -> None:
    smyrf.gan.move_attention(model, 128, seed=3)
    smyrf.gan.enable(model)
    with smyrf.collect(errors=True) as records:
        generate(model, 1)
    (record,) = records
    assert record.statistics.method == "tree"
    assert record.shape == (1, 1, 1, 128 * 128, 64 * 64, 2, 8)
    assert record.relative_error is not None
    assert record.relative_error.max() < 0.05


def test_lsh_evaluates_its_share(model: Any) -> None:
    smyrf.gan.enable(model, method="lsh", n_hashes=4, cluster_size=64)
    with smyrf.collect(errors=True) as records:
        assert generate(model).isfinite().all()
    (record,) = records
    assert record.statistics.density == pytest.approx(0.25, rel=0.05)
    assert record.relative_error is not None
    assert record.relative_error.max() < 1


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"method": "dense"}, 1e-4),
        ({"method": "tree", "tolerance": 0.0}, 1e-4),
        # The tolerance is out's: gradients are of what tree computes. .07 to .19, by machine.
        ({"method": "tree", "tolerance": 0.03}, 0.4),
    ],
)
def test_gradients_are_the_original_ones(model: Any, options: dict[str, Any], most: float) -> None:
    """Four parts of length 1 each: all zero would be off by 2."""

    def gradients() -> torch.Tensor:
        model.zero_grad()
        layer = attention_of(model)
        features = torch.randn(1, 32, 64, 64, generator=torch.Generator().manual_seed(2))
        features.requires_grad_()
        layer(features).square().sum().backward()
        parts = (layer.snconv1x1_theta, layer.snconv1x1_phi, layer.snconv1x1_g)
        grads = [part.weight_orig.grad for part in parts] + [features.grad]
        return torch.cat([(grad / grad.norm()).flatten() for grad in grads])

    want = gradients()
    smyrf.gan.enable(model, **options)
    assert (gradients() - want).norm() < most


def test_only_the_class_changes_and_comes_back(model: Any) -> None:
    def state() -> Any:
        weights = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        return weights, {name: dict(vars(m)) for name, m in model.named_modules()}

    want, before = generate(model), state()
    smyrf.gan.enable(model, method="tree")
    assert isinstance(attention_of(model), SelfAttn)
    smyrf.gan.enable(model, method="lsh")  # in place of tree
    smyrf.gan.disable(model)
    assert state() == before
    assert type(attention_of(model)) is SelfAttn
    assert torch.equal(generate(model), want)


def test_a_batch_of_nothing(model: Any) -> None:
    smyrf.gan.enable(model, method="dense")
    assert attention_of(model)(torch.zeros(0, 32, 64, 64)).shape == (0, 32, 64, 64)


def test_state_dicts_load_either_way(model: Any) -> None:
    want = generate(model)
    enabled = BigGAN(model.config).eval()
    smyrf.gan.enable(enabled, method="dense")
    enabled.load_state_dict(model.state_dict())
    torch.testing.assert_close(generate(enabled), want, rtol=0, atol=2e-6)
    plain = BigGAN(model.config).eval()
    plain.load_state_dict(enabled.state_dict())
    assert torch.equal(generate(plain), want)


def test_copies_are_enabled_too_and_apart(model: Any) -> None:
    smyrf.gan.enable(model, method="tree", tolerance=0.03)
    want = generate(model)
    pickled = pickle.dumps(model, 2)  # this protocol has names as lines
    of_0_2 = pickled.replace(b"csmyrf.integrations.gan\n", b"csmyrf.gan\n")
    assert of_0_2 != pickled
    copies = [copy.deepcopy(model), pickle.loads(pickled), pickle.loads(of_0_2)]
    smyrf.gan.disable(model)
    for other in copies:
        assert torch.equal(generate(other), want)
        smyrf.gan.disable(other)
        assert torch.equal(generate(other), generate(model))


def test_layers_that_are_not_chosen_are_dense(model: Any) -> None:
    pair = torch.nn.ModuleList([model, copy.deepcopy(model)])
    assert smyrf.gan.enable(pair, method="tree", layers="1.*") == ["1.generator.layers.8"]
    with smyrf.collect() as records:
        generate(pair[0])
        generate(pair[1])
    assert [(r.layer, r.statistics.method) for r in records] == [
        ("0.generator.layers.8", "dense"),
        ("1.generator.layers.8", "tree"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "trees"}, ValueError, "method"),
        ({"method": "dense", "tolerance": 0.1}, ValueError, "tolerance"),
        ({"method": "tree", "cluster": 3}, TypeError, "cluster: unknown dial, expected n_hashes"),
        ({"layers": "encoder.*"}, ValueError, r"chooses none .*generator\.layers\.8"),
        ({"layers": 8}, TypeError, "layers: got int"),
    ],
)
def test_what_enable_refuses(
    model: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        smyrf.gan.enable(model, **options)
    assert type(attention_of(model)) is SelfAttn


def test_what_has_no_attention_or_is_not_enabled(model: Any) -> None:
    with pytest.raises(ValueError, match="Linear has no SelfAttn of pytorch_pretrained_biggan"):
        smyrf.gan.enable(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"this BigGAN is not enabled; call smyrf\.gan\.enable"):
        smyrf.gan.disable(model)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_pretrained_biggan.model", None)
    for module in ("smyrf.gan", "smyrf.integrations.gan"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=r"BigGAN needs it; type: pip install .*pytorch-pre"):
        importlib.import_module("smyrf.gan")


@pytest.mark.parametrize(
    ("resolution", "position", "channels", "queries"),
    [(16, 4, 64, 256), (128, 10, 16, 128**2), (256, 12, 8, 256**2)],
)
def test_attention_moves(resolution: int, position: int, channels: int, queries: int) -> None:
    model = build(8, {"output_dim": 256, "layers": LAYERS_256})
    layer = attention_of(model)
    name = smyrf.gan.move_attention(model, resolution, seed=1)
    assert name == f"generator.layers.{position}"
    assert model.config.attention_layer_position == position
    moved = model.generator.layers[position]
    assert moved is not layer
    assert moved.in_channels == channels
    assert [isinstance(m, SelfAttn) for m in model.generator.layers].count(True) == 1
    smyrf.gan.enable(model, method="tree")  # the original would take 4 GB for weights at 256
    passed = generate(model, 1)  # gamma is 0
    with torch.no_grad():
        moved.gamma.fill_(1)
    with smyrf.collect() as records:
        assert not torch.equal(generate(model, 1), passed)
    (record,) = records
    assert (record.shape.queries, record.shape.keys) == (queries, queries // 4)


def test_attention_moves_with_its_weights_where_channels_agree() -> None:
    settings = {"output_dim": 256, "layers": LAYERS_256, "attention_layer_position": 4}
    model = build(8, settings)
    layer = model.generator.layers[4]
    assert smyrf.gan.move_attention(model.generator, 32) == "layers.6"
    assert model.generator.layers[6] is layer
    assert torch.isfinite(generate(model, 1)).all()


def test_a_moved_generator_is_built_again_and_loaded(model: Any) -> None:
    def moved(seed: int) -> Any:
        other = BigGAN(copy.deepcopy(model.config))
        other.load_state_dict(model.state_dict())
        smyrf.gan.move_attention(other, 128, seed=seed)
        return other.eval()

    first, same, different = moved(1), moved(1), moved(2)
    for trained in (first, same, different):
        with torch.no_grad():
            trained.generator.layers[10].gamma.fill_(1)
    want = generate(first)
    assert torch.equal(generate(same), want)
    assert not torch.equal(generate(different), want)
    loaded = BigGAN(first.config).eval()
    smyrf.gan.move_attention(loaded, 128, seed=0)
    loaded.load_state_dict(first.state_dict())
    assert torch.equal(generate(loaded), want)


def test_moving_leaves_the_random_state_alone(model: Any) -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    smyrf.gan.move_attention(model, 128, seed=1)
    assert torch.equal(torch.rand(1), want)


def test_what_move_attention_refuses(model: Any) -> None:
    with pytest.raises(
        ValueError, match="got 256, this generator's blocks give 4, 8, 16, 32, 64, "
    ):
        smyrf.gan.move_attention(model, 256, seed=1)
    with pytest.raises(ValueError, match="a layer for 16 channels, and the generator has one for "):
        smyrf.gan.move_attention(model, 128)
    with pytest.raises(ValueError, match="ModuleList holds 2 generators"):
        smyrf.gan.move_attention(torch.nn.ModuleList([model, copy.deepcopy(model)]), 128)
    smyrf.gan.enable(model)
    with pytest.raises(ValueError, match=r"is enabled; call smyrf\.gan\.disable"):
        smyrf.gan.move_attention(model, 128, seed=1)
    assert type(attention_of(model)) is smyrf.gan._SmyrfSelfAttn
