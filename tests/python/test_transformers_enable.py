"""Switching loaded models in place and back: framework tests of `enable` and `disable`."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import (
    BART,
    BATCH,
    LENGTH,
    SIZES,
    VISION,
    assert_close,
    build,
    inputs_for,
    padding,
    run,
    tokens,
)
from transformers import PreTrainedModel

import smyrf
import smyrf.transformers
from smyrf.integrations.transformers.layers import _switched, kept, kept_enabled


def test_only_attn_implementation_and_an_attribute_differ_while_enabled() -> None:
    model = build("Whisper")

    def state() -> Any:
        modules = {
            name: {k: id(value) for k, value in vars(module).items() if "smyrf" not in k}
            for name, module in model.named_modules()
        }
        hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
        weights = {name: value.data_ptr() for name, value in model.state_dict().items()}
        return modules, hooks, weights, model.config.to_dict()

    before = state()
    smyrf.transformers.enable(model, method="lsh", layers="model.encoder.*", cluster_size=4)
    assert model.config._attn_implementation == "smyrf"
    assert state() == before
    smyrf.transformers.disable(model)
    assert model.config._attn_implementation == "sdpa"
    assert state() == before
    assert not any("smyrf" in key for module in model.modules() for key in vars(module))


def composite() -> Any:
    torch.manual_seed(7)
    config = transformers.CLIPConfig(
        text_config={**SIZES, "max_position_embeddings": 16}, vision_config=VISION
    )
    model = transformers.CLIPModel(config).eval()
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    return model


def test_nested_configs_are_switched_and_each_gets_its_own_back() -> None:
    model = composite()
    configs = (model.config, model.config.text_config, model.config.vision_config)
    before = [config._attn_implementation for config in configs]
    assert before[1:] == ["sdpa", "eager"]
    inputs = {
        "input_ids": tokens(),
        "attention_mask": padding("right"),
        "pixel_values": inputs_for("ViT", "none")["pixel_values"],
    }
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    assert [config._attn_implementation for config in configs[1:]] == ["smyrf", "smyrf"]
    with smyrf.collect() as records:
        assert_close(run(model, inputs), want)
    assert len({record.layer for record in records}) == 4
    smyrf.transformers.disable(model)
    assert [config._attn_implementation for config in configs] == before


def test_a_submodel_can_be_enabled_alone_but_not_under_two_owners() -> None:
    model = composite()
    smyrf.transformers.enable(model.vision_model, method="lsh", cluster_size=4)
    assert model.config.text_config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match=r"already enabled through another .*CLIPVision"):
        smyrf.transformers.enable(model)
    assert model.config.text_config._attn_implementation == "sdpa"
    smyrf.transformers.disable(model.vision_model)
    assert model.config.vision_config._attn_implementation == "eager"


def test_a_shared_config_is_given_back_by_its_last_model() -> None:
    first = build("Bert")
    second = transformers.BertModel(first.config).eval()
    inputs = inputs_for("Bert", "right")
    smyrf.transformers.enable(first)
    smyrf.transformers.enable(second, method="lsh", cluster_size=4)
    smyrf.transformers.disable(first)
    with smyrf.collect() as records:
        run(second, inputs)
    assert [record.statistics.method for record in records] == ["lsh", "lsh"]
    smyrf.transformers.disable(second)
    assert first.config._attn_implementation == "sdpa"
    assert id(first.config) not in _switched


def test_a_deleted_model_gives_its_config_back() -> None:
    first = build("Bert")
    config = first.config
    second: PreTrainedModel | None = transformers.BertModel(config).eval()
    smyrf.transformers.enable(first)
    smyrf.transformers.enable(second)
    del second
    gc.collect()
    assert config._attn_implementation == "smyrf"
    del first
    gc.collect()
    assert config._attn_implementation == "sdpa"


def test_parts_without_the_interface_are_left_alone() -> None:
    vision, text = build("ViT"), transformers.MPNetModel(transformers.MPNetConfig(**SIZES)).eval()
    model = transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=text).eval()
    assert text.config._attn_implementation == "eager"
    inputs = inputs_for("ViT", "none") | inputs_for("Bert", "right")
    want = run(model, inputs)
    holder = torch.nn.ModuleDict({"both": model})
    chosen = smyrf.transformers.enable(holder)
    assert chosen == [f"both.vision_model.layers.{i}.attention" for i in range(2)]
    assert text.config._attn_implementation == "eager"
    assert vision.config._attn_implementation == "smyrf"
    assert_close(run(model, inputs), want)
    smyrf.transformers.disable(holder)
    assert torch.equal(run(model, inputs), want)


@pytest.fixture
def whisper() -> Iterator[Any]:
    model = build("Whisper")
    yield model
    if kept_enabled(model) is not None:
        smyrf.transformers.disable(model)


def methods(model: Any) -> dict[str | None, str]:
    with smyrf.collect() as records:
        run(model, inputs_for("Whisper", "left"))
    return {record.layer: record.statistics.method for record in records}


ENCODER = {f"model.encoder.layers.{i}.self_attn" for i in range(2)}


@pytest.mark.parametrize(
    "layers",
    ["model.encoder.*", lambda name, module: ".encoder." in name and not module.is_causal],
    ids=["pattern", "callable"],
)
def test_layers_choose_who_takes_the_method(whisper: Any, layers: Any) -> None:
    chosen = smyrf.transformers.enable(whisper, method="lsh", layers=layers, cluster_size=4)
    assert set(chosen) == ENCODER
    taken = methods(whisper)
    assert {name for name, method in taken.items() if method == "lsh"} == ENCODER
    assert sum(method == "dense" for method in taken.values()) == 4


def test_enabling_again_replaces_everything(whisper: Any) -> None:
    smyrf.transformers.enable(whisper, method="lsh", layers="model.encoder.*", cluster_size=4)
    smyrf.transformers.enable(whisper, method="lsh", layers="model.encoder.layers.1.*")
    taken = methods(whisper)
    assert [name for name, method in taken.items() if method == "lsh"] == [
        "model.encoder.layers.1.self_attn"
    ]
    smyrf.transformers.disable(whisper)
    assert whisper.config._attn_implementation == "sdpa"


def advised(said: str) -> Callable[[str, torch.nn.Module], bool]:
    """The callable that an error message proposes for `layers`."""
    rule = said[said.index("layers=lambda") + len("layers=") :].rsplit(", ...)", 1)[0]
    found: Callable[[str, torch.nn.Module], bool] = eval(rule)
    return found


def test_a_causal_layer_says_how_to_leave_it_out(whisper: Any) -> None:
    smyrf.transformers.enable(whisper, method="lsh", cluster_size=4)
    with pytest.raises(NotImplementedError) as caught:
        run(whisper, inputs_for("Whisper", "left"))
    said = str(caught.value)
    assert said.startswith("model.decoder.layers.0.self_attn: ")
    smyrf.transformers.enable(whisper, method="lsh", layers=advised(said), cluster_size=4)
    taken = methods(whisper)
    # Cross-attention takes lsh, causal self-attention stays dense.
    assert sum(method == "lsh" for method in taken.values()) == 4
    assert sum(method == "dense" for method in taken.values()) == 2


def test_a_sliding_layer_says_how_to_leave_it_out() -> None:
    model = build("ModernBert")
    smyrf.transformers.enable(model, method="lsh")
    inputs = inputs_for("ModernBert", "right")
    with pytest.raises(
        NotImplementedError, match=r"^layers\.1\.attn: .*'sliding_window', None"
    ) as e:
        run(model, inputs)
    smyrf.transformers.enable(model, method="lsh", layers=advised(str(e.value)))
    with smyrf.collect() as records:
        run(model, inputs)
    assert [record.statistics.method for record in records] == ["lsh", "dense"]


def test_a_full_mask_says_how_to_leave_the_layer_out() -> None:
    model = build("Bert")
    smyrf.transformers.enable(model, method="lsh")
    mask = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    name = "encoder.layer.0.attention.self"
    with pytest.raises(NotImplementedError, match=f"^{name}: .*attn_mask.*name != '{name}'"):
        run(model, {"input_ids": tokens(), "attention_mask": mask})


def test_bad_requests_change_nothing(whisper: Any) -> None:
    enable: Callable[..., Any] = smyrf.transformers.enable
    with pytest.raises(ValueError, match=r"not enabled; call smyrf\.transformers\.enable"):
        smyrf.transformers.disable(whisper)
    with pytest.raises(TypeError, match="n_hash: unknown dial, expected n_hashes, cluster_size"):
        enable(whisper, method="lsh", n_hash=3)
    with pytest.raises(ValueError, match="cluster_size"):
        enable(whisper, method="dense", cluster_size=3)
    with pytest.raises(ValueError, match="cluster_size"):
        enable(whisper, method="lsh", cluster_size=0)
    with pytest.raises(ValueError, match="method"):
        enable(whisper, method="tree_of_life")
    with pytest.raises(ValueError, match=r"none .*encoder\.layers\.0\.self_attn.*method='auto'"):
        enable(whisper, layers="encoder.*")
    with pytest.raises(TypeError, match="layers: got list"):
        enable(whisper, layers=["model.encoder"])
    assert whisper.config._attn_implementation == "sdpa"
    with smyrf.collect() as records:
        run(whisper, inputs_for("Whisper", "left"))
    assert not records


def test_models_without_the_interface_are_refused() -> None:
    config = transformers.BloomConfig(vocab_size=100, hidden_size=32, n_layer=1, n_head=4)
    with pytest.raises(ValueError, match="BloomModel has no module"):
        smyrf.transformers.enable(transformers.BloomModel(config))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 4}),
        ("Mpt", {"d_model": 32, "n_layers": 1, "n_heads": 4}),
        ("RoFormer", SIZES),
        ("Falcon", SIZES),
        ("Git", {**SIZES, "vision_config": VISION}),
    ],
)
def test_models_that_compute_attention_themselves_can_not_be_loaded(
    name: str, settings: dict[str, Any]
) -> None:
    config_class = getattr(transformers, f"{name}Config")
    kind = getattr(transformers, f"{name}Model")
    with pytest.raises(ValueError, match=rf"{name}.*(load it with attn|load it without, and)"):
        kind(config_class(**settings, attn_implementation="smyrf"))
    model = kind(config_class(**settings)).eval()
    if name == "Git":
        return  # its vision layers dispatch
    model.config._attn_implementation = "smyrf"
    with pytest.raises(ValueError, match=rf"{name}Config.*attn_implementation='eager'"):
        run(model, {"input_ids": tokens(), "attention_mask": padding("left")})


def test_layers_that_add_masks_to_scores_raise_in_a_model_that_dispatches_in_part() -> None:
    torch.manual_seed(7)
    model = transformers.GitModel(transformers.GitConfig(**SIZES, vision_config=VISION)).eval()
    inputs = {
        "input_ids": tokens(),
        "attention_mask": padding("left"),
        "pixel_values": inputs_for("ViT", "none")["pixel_values"],
    }
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    with pytest.raises(ValueError, match=r"^GitSelfAttention adds .*disable\(model\)"):
        run(model, inputs)
    smyrf.transformers.disable(model)
    assert torch.equal(run(model, inputs), want)


def test_a_decoder_that_sdpa_does_not_know_stays_causal() -> None:
    """Its layers say is_causal=False, which `sdpa` would believe."""
    torch.manual_seed(7)
    sizes = {key: value for key, value in BART.items() if key != "init_std"}
    config = transformers.PegasusXConfig(**sizes, init_std=0.2, block_size=4, num_global_tokens=2)
    model = transformers.PegasusXModel(config).eval()
    inputs = inputs_for("Bart", "none")
    want = run(model, inputs)
    smyrf.transformers.enable(model)
    assert_close(run(model, inputs), want)


def test_nothing_keeps_a_dropped_model_alive() -> None:
    model: PreTrainedModel | None = build("Bert")
    assert model is not None
    smyrf.transformers.enable(model)
    config, seen = weakref.ref(model.config), weakref.ref(model)
    assert id(model.config) in _switched
    key = id(model.config)
    del model
    gc.collect()
    assert seen() is None
    assert config() is None
    assert key not in _switched


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "in a holder": lambda model: copy.deepcopy(torch.nn.ModuleList([model]))[0],
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_enabled_by_the_same_method_and_dials(whisper: Any, way: str) -> None:
    want = run(whisper, inputs_for("Whisper", "left"))
    smyrf.transformers.enable(whisper, method="lsh", layers="model.encoder.*", cluster_size=3)
    taken, got = methods(whisper), run(whisper, inputs_for("Whisper", "left"))
    assert not torch.equal(got, want)
    copied = COPIES[way](whisper)
    smyrf.transformers.disable(whisper)
    assert methods(copied) == taken
    assert torch.equal(run(copied, inputs_for("Whisper", "left")), got)
    # And by configs of its own.
    smyrf.transformers.disable(copied)
    assert copied.config._attn_implementation == "sdpa"
    assert torch.equal(run(copied, inputs_for("Whisper", "left")), want)
    smyrf.transformers.enable(copied, method="dense")
    assert whisper.config._attn_implementation == "sdpa"
    assert set(methods(copied).values()) == {"dense"}
    smyrf.transformers.disable(copied)
    with pytest.raises(ValueError, match="not enabled"):
        smyrf.transformers.disable(copied)


def test_copies_of_models_that_share_a_config() -> None:
    first = build("Bert")
    second = transformers.BertModel(first.config).eval()
    smyrf.transformers.enable(first, method="dense")
    smyrf.transformers.enable(second, method="lsh", cluster_size=4)
    alone = copy.deepcopy(first)
    both = copy.deepcopy([first, second])
    smyrf.transformers.disable(alone)  # its config has no other owner
    assert alone.config._attn_implementation == "sdpa"
    smyrf.transformers.disable(both[0])
    assert both[1].config._attn_implementation == "smyrf"
    smyrf.transformers.disable(both[1])
    assert both[0].config._attn_implementation == "sdpa"
    assert first.config._attn_implementation == "smyrf"
    smyrf.transformers.disable(first)
    smyrf.transformers.disable(second)
    assert first.config._attn_implementation == "sdpa"


def test_parts_and_their_copies() -> None:
    model = build("Whisper")
    encoder = model.model.encoder
    smyrf.transformers.enable(model, method="lsh", layers="model.encoder.*", cluster_size=4)
    for call in (smyrf.transformers.disable, smyrf.transformers.enable):
        with pytest.raises(ValueError, match="through another model object, a WhisperForC"):
            call(encoder)
    copied = copy.deepcopy(encoder)
    with smyrf.collect() as records:
        copied(inputs_for("Whisper", "none")["input_features"])
    assert [record.statistics.method for record in records] == ["lsh", "lsh"]
    smyrf.transformers.disable(copied)
    assert copied.config._attn_implementation == "sdpa"
    assert encoder.config._attn_implementation == "smyrf"
    # What holds enabled models gives all of them back.
    smyrf.transformers.disable(torch.nn.ModuleList([model]))
    assert encoder.config._attn_implementation == "sdpa"


def test_copies_of_layers_inside_the_model_are_given_back_too() -> None:
    model = build("Bert")
    smyrf.transformers.enable(model, method="dense")
    model.encoder.layer.append(copy.deepcopy(model.encoder.layer[0]))
    smyrf.transformers.disable(model)
    configs = [layer.attention.self.config for layer in model.encoder.layer]
    assert [config._attn_implementation for config in configs] == ["sdpa"] * 3


def test_shallow_copies_attend_as_the_model(whisper: Any) -> None:
    smyrf.transformers.enable(whisper, method="lsh", layers="model.encoder.*", cluster_size=3)
    layer = whisper.model.encoder.layers[0].self_attn
    replica = layer._replicate_for_data_parallel()
    assert kept(replica) is kept(layer)


ROOM = "smyrf.integrations.transformers"


def forget_import(monkeypatch: Any, *modules: str) -> None:
    """As if this process had not imported the room of transformers, and these modules in it."""
    for interface in (transformers.AttentionInterface, transformers.AttentionMaskInterface):
        monkeypatch.delitem(interface._global_mapping, "smyrf")
    monkeypatch.delattr(smyrf.integrations, "transformers")
    monkeypatch.delattr(smyrf, "transformers")
    for name in ("smyrf.transformers", ROOM, *(f"{ROOM}.{module}" for module in modules)):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("version", ["0.2", "now"])
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "enabled"])
def test_a_pickled_model_needs_no_import(
    monkeypatch: Any, tmp_path: Path, loaded: bool, version: str
) -> None:
    model, inputs = build("Bert"), inputs_for("Bert", "right")
    if loaded:
        model.set_attn_implementation("smyrf")
    else:
        smyrf.transformers.enable(model, method="lsh", cluster_size=4)
    want, pickled = run(model, inputs), pickle.dumps(model, 2)  # this protocol has names as lines
    assert b"csmyrf.integrations.transformers." in pickled
    if version == "0.2":
        pickled = pickled.replace(b"csmyrf.integrations.transformers.", b"csmyrf._")
    forget_import(monkeypatch, "interface", "layers")
    copied = pickle.loads(pickled)
    assert torch.equal(run(copied, inputs), want)
    # What transformers saves says nothing of it.
    model.save_pretrained(tmp_path / "saved")
    assert "smyrf" not in (tmp_path / "saved" / "config.json").read_text()
    loaded = transformers.BertModel.from_pretrained(tmp_path / "saved")
    assert loaded.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_without_a_package_it_says_what_to_install(name: str, monkeypatch: Any) -> None:
    forget_import(monkeypatch)
    monkeypatch.setitem(sys.modules, name, None)
    said = rf"^smyrf\.transformers: {name} is not installed; type: pip install 'torch>=.*'transf"
    with pytest.raises(ImportError, match=said):
        importlib.import_module("smyrf.transformers")


def test_with_an_old_package_it_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.delattr(transformers.masking_utils, "sliding_window_bidirectional_overlay")
    monkeypatch.setattr(importlib.metadata, "version", {"torch": "2.6", "transformers": "5.3"}.get)
    forget_import(monkeypatch, "masks")
    with pytest.raises(ImportError, match=r"transformers 5\.3 is too old, 5\.4 .*pip install"):
        importlib.import_module("smyrf.transformers")
