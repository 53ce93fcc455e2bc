"""A small BigGAN with seeded random weights: the published model's code, but nothing it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_pretrained_biggan import BigGAN, BigGANConfig

# The published 256 x 256 generator: whether a block doubles the side, channels in and out.
LAYERS_256 = [
    (False, 16, 16),
    (True, 16, 16),
    (False, 16, 16),
    (True, 16, 8),
    (False, 8, 8),
    (True, 8, 8),
    (False, 8, 8),
    (True, 8, 4),
    (False, 4, 4),
    (True, 4, 2),
    (False, 2, 2),
    (True, 2, 1),
]
TRUNCATION = 0.4


def build(width: int = 8, settings: dict[str, Any] | None = None) -> Any:
    """In eval mode. gamma is 1, so that attention counts, where an untrained generator has 0."""
    torch.manual_seed(7)
    sizes = {"channel_width": width, "z_dim": 16, "class_embed_dim": 16, "num_classes": 10}
    model = BigGAN(BigGANConfig(**sizes, **(settings or {})))
    torch.nn.init.ones_(model.generator.bn.weight)  # the package leaves these two as they come
    torch.nn.init.zeros_(model.generator.bn.bias)
    torch.nn.init.ones_(attention_of(model).gamma)
    sharpen(model)
    return model.eval()


def attention_of(model: Any) -> Any:
    return model.generator.layers[model.config.attention_layer_position]


def sharpen(model: Any) -> None:
    """Logits that spread by 3, as a trained layer's may; random weights give a tenth of that."""
    with torch.no_grad():
        for _ in range(8):  # spectral norms are noise until passes in training mode make them out
            model.train()(*noise(2), TRUNCATION)
        layer = attention_of(model)
        seen: list[torch.Tensor] = []
        hooks = [
            part.register_forward_hook(lambda module, inputs, out: seen.append(out.flatten(2)[0]))
            for part in (layer.snconv1x1_theta, layer.snconv1x1_phi)
        ]
        model.eval()(*noise(2), TRUNCATION)
        for hook in hooks:
            hook.remove()
        gain = (3 / (seen[0].T @ seen[1]).std()).sqrt()
        for part in (layer.snconv1x1_theta, layer.snconv1x1_phi):
            part.weight_u /= gain  # the norm that weights are divided by is proportional to it


def noise(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """z and one-hot classes."""
    generator = torch.Generator().manual_seed(count)
    z = TRUNCATION * torch.randn(count, 16, generator=generator)
    return z, torch.eye(10)[torch.arange(count) % 10]


def generate(model: Any, count: int = 2) -> torch.Tensor:
    with torch.no_grad():
        images: torch.Tensor = model(*noise(count), TRUNCATION)
    return images


def save(model: Any, folder: Path) -> None:
    """As `BigGAN.from_pretrained` and `smyrf compare` read it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json_string())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
