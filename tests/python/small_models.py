"""Small models of transformers with seeded random weights, their inputs, and how to compare them.

The weights are wide enough that a wrong mask moves outputs far beyond the bounds.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.2,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertModel", SIZES),
    "Roberta": ("RobertaModel", SIZES),
    "DistilBert": (
        "DistilBertModel",
        {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "ModernBert": (
        "ModernBertModel",
        {**SIZES, "local_attention": 4, "global_attn_every_n_layers": 2},
    ),
    "BertDecoder": ("BertModel", {**SIZES, "is_decoder": True, "add_cross_attention": True}),
    "ViT": ("ViTModel", VISION),
    "Llama": ("LlamaForCausalLM", GROUPED),
    "LlamaBothWays": ("LlamaModel", {**GROUPED, "is_causal": False}),
    "Mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 4}),
    "Gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 8}),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "Bart": ("BartModel", BART),
    "Whisper": (
        "WhisperForConditionalGeneration",
        {
            **BART,
            "max_source_positions": 30,
            "max_target_positions": 40,
            "num_mel_bins": 8,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "T5": ("T5Model", T5),
    "UMT5": ("UMT5Model", T5),
    # Chunked and mixed patterns: masks that are no plain pattern.
    "Llama4": (
        "Llama4ForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "attention_chunk_size": 4,
            "num_local_experts": 2,
            "intermediate_size_mlp": 64,
        },
    ),
}
BATCH, LENGTH = 3, 11


def build(name: str, kind: str | None = None) -> Any:
    """A model by its short name; `kind`: another class that takes the same config."""
    torch.manual_seed(7)
    usual, settings = MODELS[name]
    model_class = getattr(transformers, kind or usual)
    config = model_class.config_class(**settings)
    return model_class(config).eval()


def padding(side: str) -> torch.Tensor:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, 7:] = 0
    mask[2, 4:] = 0
    return mask if side == "right" else mask.flip(1)


def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(5, 90, (BATCH, LENGTH), generator=generator)


def features() -> torch.Tensor:
    return torch.randn(BATCH, 8, 60, generator=torch.Generator().manual_seed(5))


def inputs_for(name: str, side: str) -> dict[str, torch.Tensor]:
    if name == "ViT":
        generator = torch.Generator().manual_seed(4)
        return {"pixel_values": torch.randn(BATCH, 3, 16, 16, generator=generator)}
    ids = tokens()
    masked = {} if side == "none" else {"attention_mask": padding(side)}
    if name == "Whisper":
        inputs = {"input_features": features(), "decoder_input_ids": ids}
        return inputs | {f"decoder_{key}": mask for key, mask in masked.items()}
    if name in ("Bart", "T5", "UMT5"):
        decoder = {"decoder_input_ids": ids.flip(0)}
        if side != "none":
            other = {"left": "right", "right": "left"}[side]
            decoder["decoder_attention_mask"] = padding(other)
        return {"input_ids": ids} | masked | decoder
    if name == "BertDecoder":
        states = torch.randn(BATCH, 9, 32, generator=torch.Generator().manual_seed(6))
        masked["encoder_hidden_states"] = states
        masked["encoder_attention_mask"] = padding("right")[:, :9]
    return {"input_ids": ids} | masked


def run(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs)[0]
    return output


def valid(output: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    return output if mask is None else output[mask.bool()]


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert want.std() > 0.05, "outputs too small for the bound to mean anything"
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
