"""A small BigGAN-style pair: residual blocks, spectral norms, self-attention in both.

Zhang et al., "Self-Attention Generative Adversarial Networks" (2019); Brock et al., "Large Scale
GAN Training for High Fidelity Natural Image Synthesis" (2019). Without classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import smyrf
from smyrf.compare.choice import lsh_dials

METHODS = ("dense", "lsh", "tree", "sdpa", "explicit")
NOISE = 64  # numbers that an image is made of
FIRST_SIDE = 4  # pixels
MOST_TIMES = 16  # channels, over those at the full resolution

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """`size` and `attention` are pixels a side, powers of 2; `width` channels at the full size."""

    size: int
    attention: int
    width: int

    def sides(self) -> list[int]:
        """4, 8, ... size."""
        return [FIRST_SIDE << i for i in range((self.size // FIRST_SIDE).bit_length())]

    def channels(self, side: int) -> int:
        return self.width * min(MOST_TIMES, self.size // side)


def attention_by(method: str, tolerance: float, density: float) -> Attend:
    """Attention without a scale, (B, 1, N, D), by smyrf, by PyTorch, or with all weights formed."""
    if method == "sdpa":
        return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    if method == "explicit":
        return lambda q, k, v: (q @ k.mT).softmax(-1) @ v

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        dials: dict[str, Any] = {}
        if method == "tree":
            dials = {"tolerance": tolerance}
        elif method == "lsh":
            dials = lsh_dials(density, k.shape[2])
        out: torch.Tensor = smyrf.attention(q, k, v, scale=1.0, method=method, **dials)
        return out

    return attend


def conv(channels: int, out: int, kernel: int, bias: bool = True) -> nn.Module:
    return spectral_norm(nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias))


class SelfAttention(nn.Module):
    """Queries are all pixels, keys and values a quarter as many after max pooling."""

    def __init__(self, channels: int, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.query = conv(channels, channels // 8, 1, bias=False)
        self.key = conv(channels, channels // 8, 1, bias=False)
        self.value = conv(channels, channels // 2, 1, bias=False)
        self.out = conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = rows(self.query(x))
        key, value = (rows(functional.max_pool2d(part(x), 2)) for part in (self.key, self.value))
        attended = self.attend(query, key, value).mT.reshape(x.shape[0], -1, *x.shape[2:])
        return x + self.gamma * self.out(attended)


def rows(features: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as one head's rows, (B, 1, HW, C)."""
    return features.flatten(2).mT.contiguous()[:, None]


class NoisyNorm(nn.Module):
    """Batch norm whose gain and bias are made of the noise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = spectral_norm(nn.Linear(NOISE, channels, bias=False))
        self.bias = spectral_norm(nn.Linear(NOISE, channels, bias=False))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        gain, bias = (part(z)[:, :, None, None] for part in (self.gain, self.bias))
        return self.norm(x) * (1 + gain) + bias


class UpBlock(nn.Module):
    """Doubles the side."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([NoisyNorm(channels), NoisyNorm(out)])
        self.convs = nn.ModuleList([conv(channels, out, 3), conv(out, out, 3)])
        self.skip = conv(channels, out, 1)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        h = self.convs[0](doubled(self.norms[0](x, z).relu()))
        h = self.convs[1](self.norms[1](h, z).relu())
        return h + doubled(self.skip(x))


def doubled(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2)


class DownBlock(nn.Module):
    """Halves the side."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(channels, out, 3), conv(out, out, 3)])
        self.skip = conv(channels, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.convs[1](self.convs[0](x.relu()).relu())
        return functional.avg_pool2d(h + self.skip(x), 2)


class Generator(nn.Module):
    """Noise (B, NOISE) to images (B, 3, size, size) from -1 to 1."""

    def __init__(self, shape: Shape, attend: Attend) -> None:
        super().__init__()
        sides = shape.sides()
        self.first = spectral_norm(nn.Linear(NOISE, shape.channels(FIRST_SIDE) * FIRST_SIDE**2))
        self.blocks = nn.ModuleList(
            UpBlock(shape.channels(side // 2), shape.channels(side)) for side in sides[1:]
        )
        self.attention = SelfAttention(shape.channels(shape.attention), attend)
        self.attention_side = shape.attention
        self.norm = nn.BatchNorm2d(shape.width)
        self.last = conv(shape.width, 3, 3)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.first(z).view(z.shape[0], -1, FIRST_SIDE, FIRST_SIDE)
        for block in self.blocks:
            x = block(x, z)
            if x.shape[2] == self.attention_side:
                x = self.attention(x)
        return torch.tanh(self.last(self.norm(x).relu()))


class Discriminator(nn.Module):
    """Images (B, 3, size, size) to one number each, high for real."""

    def __init__(self, shape: Shape, attend: Attend) -> None:
        super().__init__()
        sides = shape.sides()[::-1]
        self.first = conv(3, shape.width, 3)
        self.blocks = nn.ModuleList(
            DownBlock(shape.channels(side), shape.channels(side // 2)) for side in sides[:-1]
        )
        self.attention = SelfAttention(shape.channels(shape.attention), attend)
        self.attention_side = shape.attention
        self.last = spectral_norm(nn.Linear(shape.channels(FIRST_SIDE), 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        if x.shape[2] == self.attention_side:
            x = self.attention(x)
        for block in self.blocks:
            x = block(x)
            if x.shape[2] == self.attention_side:
                x = self.attention(x)
        return self.last(x.relu().sum((2, 3)))[:, 0]
