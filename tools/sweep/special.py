"""What the general rules don't know about single model types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Arguments of configs, by model type; they also apply where the config is part of another.
_SERIES = {"prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2]}
CONFIGS: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES,
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "emu3": {"vocabulary_map": {"<|extra_200|>": 61, "<image>": 62, "<|visual token 000000|>": 63}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 16},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "chameleon": {"vocabulary_map": {"<image>": 61, "IMGIMGAZ": 62}},
    "blip-2": {"image_token_index": 61},
    "instructblip": {"image_token_index": 61},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 2, 4],
            }
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "glm5_next_text": {"index_topk": 16},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
}

# Model types that can't be run small here, and why.
UNBUILT: dict[str, str] = {}

# Inputs without padding, by model type: a function of `sweep.inputs.Model`.
INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {}

# Models of which a convolution reads rows of padding beside the valid ones. `tree` gives those no
# output, so that it can't be compared there.
PADDING_IS_READ = {"nemotron3_diarization", "nemotron3_5_transcribe_audio"}
