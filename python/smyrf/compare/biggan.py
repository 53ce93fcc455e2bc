"""A generator from a folder as `pytorch_pretrained_biggan` keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smyrf._extra import to_install
from smyrf.compare.problem import Problem, first_line

WEIGHTS = "pytorch_model.bin"


def load_biggan(folder: Path) -> Any:
    """config.json and pytorch_model.bin as a `BigGAN` in float32 and eval mode.

    Raises Problem if the package is missing, or if a file is missing, broken or does not fit.
    """
    try:
        from pytorch_pretrained_biggan import BigGAN, BigGANConfig

        from smyrf.gan import move_attention
    except ImportError as error:
        raise Problem(
            f"{error.name} is not installed, and generators need it; type: {to_install('gan')}"
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise Problem(f"model {folder}: has no weights, expected {WEIGHTS}")
    try:
        config = BigGANConfig.from_json_file(folder / "config.json")
        model = BigGAN(config)
        if config.attention_layer_position == len(config.layers):
            move_attention(model, config.output_dim, seed=0)  # see there: BigGAN leaves it out
        weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        missing, unknown = model.load_state_dict(weights, strict=False)
    except Exception as error:  # each part raises exceptions of its own
        raise Problem(
            f"model {folder}: a file is damaged or does not fit the others ({first_line(error)})"
        ) from error
    # The package's own loader would leave random numbers in their place.
    if lost := [*missing, *unknown]:
        raise Problem(
            f"model {folder}: {len(lost)} weights are missing or not the generator's, "
            f"first {lost[0]}; save model.state_dict() and model.config together"
        )
    return model.float().eval()
