"""Small configs of any model type: sizes are set by their names, what names don't say by a table.

The rules look at a config with all its defaults, and give the arguments of a smaller one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sweep.special import CONFIGS

WIDTH, HEADS, HEAD_WIDTH, INNER = 64, 4, 16, 64
VOCABULARY = 100
PAD, BOS, EOS = 0, 1, 2
FIRST_SPECIAL = 60  # random ids are smaller; image and other special tokens begin here
PATCH = 4

# Names of whole numbers, tried in this order, and what they become; None leaves the default.
_NUMBERS: list[tuple[str, int | None]] = [
    (r"type_vocab_size|num_channels|in_channels|in_chans|audio_channels|n_langs", None),
    (r"codebook_size", 64),
    (r"vocab_size|num_embeddings", VOCABULARY),
    (r"^pad_token_id$", PAD),
    (r"^bos_token_id$|decoder_start_token_id", BOS),
    (r"^eos_token_id$", EOS),
    (r"num_key_value_heads|num_kv_heads|n_kv_heads|num_key_value_groups", 2),
    (r"linear_num_\w+_heads", 4),
    (r"mamba_(n|num)_heads", 8),
    (r"mamba_(d_head|head_dim)", 16),
    (r"(^|_)(heads|n_head|num_heads)$", HEADS),
    (r"num_experts_per_tok|top_?k(_experts)?$|moe_k$|index_topk", 2),
    (r"n_group$|topk_group$", 1),
    (r"(num|n)_(\w+_)?experts$", 4),
    (r"(head_dim|d_kv|dim_head|d_head|head_size)$", HEAD_WIDTH),
    (r"lora_rank$|d_state$|state_size$", 16),
    (r"(intermediate|ffn|ff|inner|mlp|feedforward)\w*(size|dim)$|(^|_)d_ff$|n_inner$", INNER),
    (r"(hidden_layers|_layers|n_layer|^layers|depth|num_blocks)$", 2),
    (r"image_size$|img_size$|crop_size$", 4 * PATCH),
    (r"patch_size$", PATCH),
    (r"sliding_window(_size)?$|local_attention$|attention_chunk_size$|attention_window$", 4),
    (r"(max_|num_)\w*position\w*|n_positions|n_ctx$|max_seq_len\w*|max_pos_emb$", 64),
    (r"num_mel_bins$|mel_dim$|feature_size$", 16),
    (r"num_queries$|num_query_tokens$|image_seq_length$", 16),
    (r"frames_per_clip$|^num_frames$", 4),
    (r"chunk_size$", 8),
    (r"upsample_groups$", WIDTH),
    (r"num_\w*groups$", 2),
    (
        r"(^|_)(hidden|embed|embedding|model|proj|projection|out|output|emb|query|codevector)"
        r"_?(size|dim)$|^d_model$|^n_embd$|^dim$|hidden_dim$|hidden_size|width$|d_embed$",
        WIDTH,
    ),
    (r"(size|dim|channels|filters|features|units)$", WIDTH),
]
# In place of backbones of the timm library.
BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 32,
    "hidden_sizes": [32, 32, 32, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
_SPECIAL_TOKEN = re.compile(r"(_token_id|_token_index|_start_id|_end_id|_index|_token)$")


def types() -> list[str]:
    """Every model type of the installed transformers."""
    return sorted(CONFIG_MAPPING.keys())


def small(model_type: str, level: int = 0) -> PreTrainedConfig:
    """A small config of a model type.

    Args:
        level: 0 sets all sizes; 1 only lengths and counts (layers, words, experts, images) and
            leaves widths and heads, which some models derive from each other.

    Raises:
        Exception: whatever the config's class raises where sizes don't fit each other.
    """
    config_class = CONFIG_MAPPING[model_type]
    arguments = _arguments(config_class(), level, iter(range(FIRST_SPECIAL, VOCABULARY)))
    return config_class(**_merge(arguments, CONFIGS.get(model_type, {})))


def _merge(arguments: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    merged = dict(arguments)
    for name, value in special.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _arguments(default: PreTrainedConfig, level: int, ids: Iterator[int]) -> dict[str, Any]:
    own = {field.name for field in dataclasses.fields(default)}
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    default.allow_global_per_layer_attribute_access = True
    heads = getattr(default, "num_attention_heads", None)
    arguments: dict[str, Any] = {}
    for name in sorted(own - common | own & {"pad_token_id", "bos_token_id", "eos_token_id"}):
        value = getattr(default, name, None)
        if "backbone" in name and getattr(value, "model_type", "").startswith("timm"):
            arguments[name] = dict(BACKBONE)
        elif isinstance(value, PreTrainedConfig):
            arguments[name] = _arguments(value, level, ids)
            # Sub-configs of any type say which by this.
            arguments[name]["model_type"] = value.model_type
        elif value is None and name in ("vocab_size", "num_experts_per_tok"):
            arguments[name] = VOCABULARY if name == "vocab_size" else 2
        elif isinstance(value, (bool, str, float)):
            # A part's defaults are those of the whole, not those of its own class.
            arguments[name] = value
        elif isinstance(value, int):
            chosen = _number(name, value, level, ids)
            if value == heads and "key_value_heads" in name and not level:
                chosen = HEADS
            arguments[name] = chosen
        elif isinstance(value, (list, tuple)) and value:
            chosen_list = _list(name, value, level)
            if chosen_list != list(value):
                arguments[name] = chosen_list
    _one_layer_of_each_kind(default, arguments)
    _rope(default, arguments, level)
    if default.model_type in CONFIGS and level == 0:
        arguments = _merge(arguments, CONFIGS[default.model_type])
    return arguments


def _number(name: str, value: int, level: int, ids: Iterator[int]) -> int:
    for pattern, chosen in _NUMBERS:
        if re.search(pattern, name):
            if chosen is None:
                return value
            keeps_width = chosen in (WIDTH, HEADS, HEAD_WIDTH, INNER, 2) and level
            if keeps_width and not re.search(r"layer|depth|block|experts|topk|top_k", name):
                return value
            if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                return chosen
            return min(value, chosen) if value > 0 else value
    if _SPECIAL_TOKEN.search(name) and value >= FIRST_SPECIAL:
        return next(ids)
    return value


def _list(name: str, values: Any, level: int) -> list[Any]:
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return list(values)
    if re.search(r"depths$|num_blocks|layers$|num_hidden_layers", name):
        return [min(value, 2) for value in values]
    if re.search(r"token_id", name):
        return [min(value, EOS) for value in values]
    if re.search(r"heads$", name) and not level:
        return [min(value, HEADS) if value < 3 else HEADS for value in values]
    if re.search(r"image_size|img_size", name):
        return [4 * PATCH for _ in values]
    if re.search(r"index(es)?$|indices$|_layers$", name) and not level:
        return [min(value, 1) for value in values]
    if re.search(r"conv_dim$", name):
        return [32 for _ in values]
    return list(values)


def _one_layer_of_each_kind(default: PreTrainedConfig, arguments: dict[str, Any]) -> None:
    """As many layers as there are kinds: full and sliding attention, dense and sparse, ..."""
    lists = {
        name: value
        for name, value in vars(default).items()
        if re.fullmatch(r"(\w+_)?(layer_types|layers_block_type|block_types?|indexer_types)", name)
        and isinstance(value, list)
        and value
    }
    if not lists:
        return
    count_name = default.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items()}
    count = max(2, *(len(value) for value in kinds.values()))
    own = {field.name for field in dataclasses.fields(default)}
    for name, value in kinds.items():
        if name in own:
            arguments[name] = [value[min(i, len(value) - 1)] for i in range(count)]
    if count_name in own:
        arguments[count_name] = count
    if getattr(default, "is_heterogeneous", False) and "layer_types" in arguments:
        arguments["per_layer_config"] = _per_layer(default, arguments["layer_types"])


def _per_layer(default: PreTrainedConfig, layer_types: list[str]) -> dict[int, dict[str, Any]]:
    """What layers have for themselves, from the first default layer of the same kind."""
    found: dict[int, dict[str, Any]] = {}
    for index, kind in enumerate(layer_types):
        layer = default.per_layer_config[default.layer_types.index(kind)]
        for name in default._heterogeneity_spec.per_layer_attributes:
            value = getattr(layer, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                value = _number(name, value, 0, iter(()))
            found.setdefault(index, {})[name] = value
    return found


def _rope(default: PreTrainedConfig, arguments: dict[str, Any], level: int) -> None:
    """Sections of a rotary embedding that sum to half of a small head's width."""
    keys = getattr(default, "ignore_keys_at_rope_validation", ())
    rope = getattr(default, "rope_parameters", None) or {}
    by_kind = any(isinstance(value, dict) for value in rope.values())
    if level:
        return
    sections = "mrope_section" in {*keys, *rope}
    if by_kind:
        small = {
            kind: {"rope_type": "default", **one, **_sections(one, sections)}
            for kind, one in rope.items()
            if isinstance(one, dict)
        }
        arguments["rope_parameters"] = {**rope, **small}
    elif sections:
        arguments["rope_parameters"] = {"rope_type": "default", **rope, **_sections(rope, True)}


def _sections(rope: dict[str, Any], wanted: bool = False) -> dict[str, Any]:
    if not wanted and "mrope_section" not in rope:
        return rope
    half = int(HEAD_WIDTH * rope.get("partial_rotary_factor", 1)) // 2
    third = half // 3
    return {**rope, "mrope_section": [third, third, half - 2 * third]}
