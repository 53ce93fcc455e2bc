"""Inputs of any model, from the parameters of its forward and its config."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sweep.special import INPUTS

BATCH, LENGTH, FRAMES = 3, 11, 48
DECODER_LENGTH = 9  # another one, so that outputs of encoder and decoder can be told apart
LENGTHS = (7 / 11, 1.0, 4 / 11)  # the share of each row that is text and not padding
IDS = (5, 50)
MASKS = (
    "attention_mask",
    "decoder_attention_mask",
    "input_features_mask",
    "feature_attention_mask",
    "padding_mask",
)
Inputs = dict[str, Any]


@dataclass
class Model:
    """What inputs depend on: the model, its config, and which shapes are to be tried."""

    module: nn.Module
    config: Any
    images: str = "BCHW"
    audio: str = "BMT"
    raw: tuple[int, ...] = (1600,)
    everything: bool = False  # give what is optional, too
    image_tokens: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(3))

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these attributes that the config or a part of it has."""
        for config in parts(self.config):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return default

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def ids(self, *shape: int) -> torch.Tensor:
        return torch.randint(*IDS, shape, generator=self.generator)


def parts(config: Any) -> Iterator[Any]:
    """A config and the configs that it holds, breadth first."""
    level = [config]
    while level:
        yield from level
        level = [
            value
            for one in level
            for name in getattr(one, "sub_configs", {})
            if (value := getattr(one, name, None)) is not None and hasattr(value, "to_dict")
        ]


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[-2]), int(size[-1])) if isinstance(size, (list, tuple)) else (size, size)


def _text(model: Model) -> torch.Tensor:
    ids = model.ids(BATCH, LENGTH + model.image_tokens)
    token = model.get("image_token_id", "image_token_index")
    if model.image_tokens and token is not None:
        ids[:, 2 : 2 + model.image_tokens] = token
    return ids


def _image(model: Model) -> torch.Tensor:
    height, width = _pair(
        model.get("image_size", "img_size", "crop_size", "input_size", default=32)
    )
    channels = model.get("num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) else 3
    frames = model.get("num_frames", "frames_per_clip", default=4)
    patch = _pair(model.get("patch_size", default=4))
    shapes = {
        "BCHW": (BATCH, channels, height, width),
        "BTCHW": (BATCH, frames, channels, height, width),
        "B1CHW": (BATCH, 1, channels, height, width),
        "BNP": (BATCH, math.prod(_rows_and_columns(model)), channels * patch[0] * patch[1]),
    }
    return model.normal(*shapes[model.images])


def _rows_and_columns(model: Model) -> tuple[int, int]:
    """How many patches an image has."""
    height, width = _pair(
        model.get("image_size", "img_size", "crop_size", "input_size", default=32)
    )
    patch = _pair(model.get("patch_size", default=4))
    return height // patch[0], width // patch[1]


def _grid(model: Model) -> torch.Tensor:
    return torch.tensor([[1, 4, 4]] * BATCH)


def _patches(model: Model) -> torch.Tensor:
    patch = _pair(model.get("patch_size", default=4))
    depth = model.get("temporal_patch_size", default=1)
    channels = model.get("in_channels", "num_channels", "in_chans", default=3)
    depth = depth if isinstance(depth, int) else depth[0]
    return model.normal(BATCH * 16, channels * depth * patch[0] * patch[1])


def _features(model: Model) -> torch.Tensor:
    mels = model.get(
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_projection_input_dim",
        "mel_bins",
        "n_mels",
        "input_dim",
        "feature_size",
        "input_size",
        default=128,
    )
    positions = model.get("max_source_positions")
    frames = 2 * positions if positions is not None and positions <= 64 else FRAMES
    frames = _frames(model)
    shape = {"BMT": (BATCH, mels, frames), "BTM": (BATCH, frames, mels)}[model.audio]
    return model.normal(*shape)


def _frames(model: Model) -> int:
    if hasattr(model.config, "frequency_stride"):
        return int(model.config.max_length)
    positions = model.get("max_source_positions")
    return 2 * positions if positions is not None and positions <= 64 else FRAMES


def _boxes(model: Model) -> torch.Tensor:
    length = LENGTH + model.image_tokens
    corners = torch.randint(0, 30, (BATCH, length, 4), generator=model.generator)
    corners[..., 2:] += corners[..., :2]
    return corners


def _raw(model: Model) -> torch.Tensor:
    return model.normal(BATCH, *model.raw)


def _values(model: Model) -> torch.Tensor:
    length = model.get("context_length", "seq_length", default=32)
    channels = model.get("num_input_channels")
    lags = model.get("lags_sequence")
    if lags:
        length += max(lags)
    return model.normal(BATCH, length, *([channels] if channels else []))


# Parameters that are always given where a forward has them.
_MAIN: dict[str, Callable[[Model], Any]] = {
    "input_ids": _text,
    "decoder_input_ids": lambda model: model.ids(BATCH, DECODER_LENGTH),
    "bbox": _boxes,
    "pixel_values": _image,
    "pixel_values_videos": _image,
    "input_features": _features,
    "input_values": _raw,
    "past_values": _values,
}
# Parameters that are given where they have no default.
_REQUIRED: dict[str, Callable[[Model], Any]] = {
    "hidden_states": _patches,
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "input_features_mask": lambda model: torch.ones(BATCH, _frames(model), dtype=torch.long),
    "pixel_attention_mask": lambda model: torch.ones(
        BATCH, math.prod(_rows_and_columns(model)), dtype=torch.long
    ),
    "spatial_shapes": lambda model: torch.tensor([_rows_and_columns(model)] * BATCH),
    "merge_sizes": lambda model: torch.tensor([1] * BATCH),
    "qformer_input_ids": lambda model: model.ids(BATCH, LENGTH),
    "query_embeds": lambda model: model.normal(BATCH, 6, model.config.hidden_size),
    "inputs_embeds": lambda model: model.normal(BATCH, LENGTH, model.get("hidden_size")),
    "encoder_hidden_states": lambda model: model.normal(
        BATCH, 7, model.get("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size")
    ),
    "latents": lambda model: model.normal(BATCH, model.get("hidden_size"), LENGTH),
    "past_observed_mask": lambda model: torch.ones_like(_values(model)),
    "past_time_features": lambda model: model.normal(
        *_values(model).shape, model.config.num_time_features
    ),
}
_IMAGES = ("pixel_values", "pixel_values_videos")


def attempts(model: nn.Module, model_type: str) -> Iterator[tuple[Model, Inputs]]:
    """Inputs without padding to try in this order, until a model takes them."""
    config = getattr(model, "config", None)
    names = set(inspect.signature(model.forward).parameters)
    if model_type in INPUTS:
        shape = Model(model, config)
        yield shape, INPUTS[model_type](shape)
        return
    images = ["BCHW", "BTCHW", "B1CHW", "BNP"] if names & {*_IMAGES} else ["BCHW"]
    audio = ["BMT", "BTM"] if "input_features" in names else ["BMT"]
    mels = (getattr(config, "max_length", 64), getattr(config, "num_mel_bins", 16))
    raws = [(1600,), (1, 1600), (6400,), mels] if "input_values" in names else [(1600,)]
    optional = (False, True) if names & {*_REQUIRED} else (False,)
    texts = "input_ids" in names
    for with_images in (True, False) if texts and names & {*_IMAGES} else (True,):
        shapes = images if with_images else ["BCHW"]
        for everything, shape, sound, raw in itertools.product(optional, shapes, audio, raws):
            made = Model(model, config, shape, sound, raw, everything)
            yield made, _make(made, with_images)
    if texts and "input_features" in names:
        made = Model(model, config)
        yield made, {"input_ids": _text(made)}


def _make(model: Model, with_images: bool) -> Inputs:
    parameters = inspect.signature(model.module.forward).parameters
    inputs: Inputs = {}
    for name, parameter in parameters.items():
        if name in _IMAGES and "input_ids" in parameters and not with_images:
            continue
        if name == "pixel_values_videos" and "pixel_values" in parameters:
            continue
        if name in _MAIN:
            inputs[name] = _MAIN[name](model)
        elif name in _REQUIRED and (model.everything or parameter.default is parameter.empty):
            inputs[name] = _REQUIRED[name](model)
    grids = {"image_grid_thw", "grid_thw"} & set(parameters)
    if "pixel_values" in inputs and grids:
        inputs["pixel_values"] = _patches(model)
        inputs[grids.pop()] = _grid(model)
    return inputs


def with_image_tokens(model: Model, inputs: Inputs, count: int) -> Inputs:
    """The same inputs with as many image tokens in each text."""
    model.image_tokens = count
    return _make(model, with_images=True)


def pad(model: nn.Module, inputs: Inputs, side: str) -> Inputs | None:
    """The inputs with masks that say which rows are padding; None where the model takes none.

    Args:
        side: "right", "left" or "none". A decoder beside an encoder is padded on the other side.
    """
    if side == "none":
        return inputs
    if side == "left" and not {"input_ids", "inputs_embeds"} & set(inputs):
        return None  # models of sound take masks for lengths
    parameters = inspect.signature(model.forward).parameters
    other = {"left": "right", "right": "left"}[side]
    masks: Inputs = {}
    for name in MASKS:
        source = _masked_input(name, inputs)
        if name not in parameters or source is None or (masks and not name.startswith("decoder")):
            continue
        length = source.shape[-1] if source.dtype == torch.long else _time(source, inputs)
        masks[name] = mask(length, other if name.startswith("decoder") else side)
    return {**inputs, **masks} if masks else None


def _masked_input(name: str, inputs: Inputs) -> torch.Tensor | None:
    if name == "decoder_attention_mask":
        return inputs.get("decoder_input_ids")
    wanted = ["input_ids", "input_features", "input_values", "inputs_embeds"]
    if "features" in name or name == "feature_attention_mask":
        wanted = ["input_features"]
    return next((inputs[key] for key in wanted if key in inputs), None)


def _time(source: torch.Tensor, inputs: Inputs) -> int:
    if source is inputs.get("input_values"):
        return source.shape[-1]
    if source is inputs.get("input_features"):
        return max(source.shape[1:])
    return source.shape[1]


def mask(length: int, side: str) -> torch.Tensor:
    rows = torch.zeros(BATCH, length, dtype=torch.long)
    for row, share in enumerate(LENGTHS):
        rows[row, : math.ceil(share * length)] = 1
    return rows if side == "right" else rows.flip(1)


def valid_rows(inputs: Inputs, tensor: torch.Tensor) -> torch.Tensor | None:
    """Which rows (batch, length) of an output hold text, where a mask says so; else None.

    An output that is shorter or longer than the inputs is taken to be sampled evenly; the rows at
    an end of the padding are left out then.
    """
    masks = [inputs[name] for name in MASKS if name in inputs]
    if not masks or tensor.ndim < 3 or tensor.shape[0] != BATCH:
        return None
    for given in masks:
        if given.shape[1] == tensor.shape[1]:
            return given.bool()
    if tensor.shape[1] < 4:
        return None
    padded = 1 - masks[0].float()[:, None]
    sampled = nn.functional.adaptive_max_pool1d(padded, tensor.shape[1])
    return nn.functional.max_pool1d(sampled, 3, stride=1, padding=1)[:, 0] == 0
