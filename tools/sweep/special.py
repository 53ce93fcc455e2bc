"""What the general rules don't know about single model types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Arguments of configs, by model type; they also apply where the config is part of another.
CONFIGS: dict[str, dict[str, Any]] = {}

# Model types that can't be run small here, and why.
UNBUILT: dict[str, str] = {}

# Inputs without padding, by model type: a function of `sweep.inputs.Model`.
INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {}
