"""SMYRF in BigGAN: the self-attention of `pytorch_pretrained_biggan`, switched in place and back.

Its layer has one head; queries are all pixels of a feature map, keys and values a quarter as many
after max pooling, and logits are not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smyrf._extra import to_install
from smyrf._types import Method

try:
    import torch
    from pytorch_pretrained_biggan.model import GenBlock, Generator, SelfAttn
    from torch import nn

    from smyrf._dials import Layers, attend, check_dials, choose
except ImportError as missing:
    raise ImportError(
        f"smyrf.gan: {missing.name} is not installed, and BigGAN needs it; "
        f"type: {to_install('gan')}",
        name=missing.name,
    ) from missing

FIRST_SIDE = 4  # pixels a side of what the generator's first block gets
POWER_ITERATIONS = 16  # passes that bring a new layer's spectral norms from noise to what they are


@dataclass(frozen=True)
class _Choice:
    """What `enable` chose for a layer."""

    name: str
    method: Method
    dials: Mapping[str, Any]


class _SmyrfSelfAttn(SelfAttn):  # type: ignore[misc]
    """`SelfAttn` by `smyrf.attention`. `enable` makes a layer one of these, weights untouched."""

    smyrf: _Choice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and the result: (B, C, H, W). One head of H W queries and H W / 4 keys; D is C / 8."""
        query = _rows(self.snconv1x1_theta(x))
        key = _rows(self.maxpool(self.snconv1x1_phi(x)))
        value = _rows(self.maxpool(self.snconv1x1_g(x)))
        options = {"scale": 1.0, "method": self.smyrf.method, **self.smyrf.dials}
        attended = attend(self.smyrf.name, query, key, value, options).mT
        features = attended.reshape(x.shape[0], attended.shape[-2], *x.shape[2:])
        out: torch.Tensor = x + self.gamma * self.snconv1x1_o_conv(features)
        return out


def enable(
    model: nn.Module, method: Method = "auto", layers: Layers = None, **dials: float | None
) -> list[str]:
    """Switch a generator's self-attention to smyrf, in place.

    The attention modules get another class, and an attribute `smyrf` that says how they attend.
    Weights and hooks stay, and state dicts load either way. Enabling again replaces method, layers
    and dials. A copy of an enabled model is enabled, too.

    Args:
        model: a `BigGAN` or `Generator` of `pytorch_pretrained_biggan`, or a module that holds
            some.
        method: as in `smyrf.attention`, default "auto".
        layers: which attention modules take the method; the others run smyrf's `dense`. None (the
            default): all. A string: a shell pattern (`fnmatch`, case counts) for the module's name
            in `model.named_modules()`. A callable: gets the name and the module of each attention
            module, and returns whether it takes the method.
        dials: n_hashes, cluster_size, tolerance, max_density, seed: as in `smyrf.attention`.

    Returns:
        Names of the modules that take the method.

    Raises:
        TypeError: an unknown dial, or layers of another type.
        ValueError: an unknown method; a dial out of range, or of another method; no attention
            module found, or none chosen by layers.
    """
    check_dials(method, dials)
    found = {name: m for name, m in model.named_modules() if type(m) in (SelfAttn, _SmyrfSelfAttn)}
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} has no SelfAttn of pytorch_pretrained_biggan; smyrf "
            "can't be switched on in it"
        )
    chosen = choose(found, layers)
    for name, module in found.items():
        taken = name in chosen
        module.__class__ = _SmyrfSelfAttn
        module.smyrf = _Choice(name, method if taken else "dense", dials if taken else {})
    return chosen


def disable(model: nn.Module) -> None:
    """Give a generator back its own self-attention.

    Raises:
        ValueError: the model is not enabled.
    """
    enabled = [module for module in model.modules() if type(module) is _SmyrfSelfAttn]
    if not enabled:
        raise ValueError(
            f"model: this {type(model).__name__} is not enabled; call "
            "smyrf.gan.enable(model, ...) on this very object before disable"
        )
    for module in enabled:
        del module.smyrf
        module.__class__ = SelfAttn


def move_attention(model: nn.Module, resolution: int, seed: int | None = None) -> str:
    """Move a generator's self-attention behind the first block that gives so many pixels a side.

    Where the feature map has as many channels as before, the layer moves with its weights, which
    were trained for another map. Where it has not, as at every higher resolution of the published
    generators, the weights can't be used. With a seed, a new layer then takes the old one's place.
    Its weights are random, and its gamma is 0, so that it adds nothing until it is trained. The
    seed decides the new weights alone; torch's random state does not change.

    `config.attention_layer_position` follows. `BigGAN(config)` builds no attention behind the last
    block: to load a state dict of a generator with attention there, build it, call
    `move_attention(model, resolution, seed=0)` and then `load_state_dict`.

    Args:
        model: a `BigGAN` or `Generator`, or a module that holds one; not enabled.
        resolution: pixels a side, e.g. 128 for 16,384 queries and 4,096 keys.
        seed: of a new layer's weights. None: raise where one is needed.

    Returns:
        The name of the layer, as in `model.named_modules()`.

    Raises:
        ValueError: no generator or more than one, or several such layers; it is enabled; no block
            gives that resolution; a new layer is needed and there is no seed.
    """
    generator_name, generator = _only_generator(model)
    layers = [m for m in generator.layers if isinstance(m, SelfAttn)]
    if len(layers) > 1:
        raise ValueError(f"model: has {len(layers)} attention layers; move_attention moves one")
    attention = layers[0] if layers else None
    if isinstance(attention, _SmyrfSelfAttn):
        raise ValueError("model: is enabled; call smyrf.gan.disable(model) before it is changed")
    blocks = [module for module in generator.layers if isinstance(module, GenBlock)]
    position, channels = _place(blocks, resolution)
    if attention is None or attention.in_channels != channels:
        attention = _new_layer(attention, channels, resolution, seed, generator)
    generator.layers = nn.ModuleList([*blocks[:position], attention, *blocks[position:]])
    generator.config.attention_layer_position = position
    return f"{generator_name}.layers.{position}".lstrip(".")


def _rows(features: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as one head's rows, (B, 1, HW, C)."""
    return features.flatten(2).mT.contiguous()[:, None]


def _only_generator(model: nn.Module) -> tuple[str, Any]:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Generator)]
    if len(found) != 1:
        raise ValueError(
            f"model: {type(model).__name__} holds {len(found)} generators of "
            "pytorch_pretrained_biggan, expected 1"
        )
    return found[0]


def _place(blocks: list[Any], resolution: int) -> tuple[int, int]:
    """How many blocks come before the attention, and how many channels the last of them gives."""
    side, sides = FIRST_SIDE, []
    for position, block in enumerate(blocks, 1):
        side *= 2 if block.up_sample else 1
        if side == resolution:
            return position, block.conv_3.out_channels
        sides.append(side)
    raise ValueError(
        f"resolution: got {resolution}, this generator's blocks give "
        f"{', '.join(map(str, sorted(set(sides))))}"
    )


def _new_layer(old: Any, channels: int, resolution: int, seed: int | None, generator: Any) -> Any:
    if seed is None:
        has = "has none" if old is None else f"has one for {old.in_channels}"
        raise ValueError(
            f"resolution: attention at {resolution} needs a layer for {channels} channels, and the "
            f"generator {has}; give a seed for a new one, which must be trained"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = SelfAttn(channels, eps=generator.config.eps)
        # Spectral norms start as noise, and only passes in training mode compute them.
        with torch.no_grad():
            for _ in range(POWER_ITERATIONS):
                layer(torch.zeros(1, channels, 2, 2))
    like = generator.conv_to_rgb.bias
    return layer.to(like.device, like.dtype).train(generator.training)
