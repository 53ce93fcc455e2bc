"""Models of any architecture of llama.cpp with made-up weights, which its own loader makes from
metadata alone."""

from __future__ import annotations

import ctypes
import zlib
from functools import cache
from typing import Any

import numpy as np
from llama_host import call, model_parameters

VOCABULARY = 512
_pointer = ctypes.c_void_p
_fill = ctypes.CFUNCTYPE(None, _pointer, _pointer)
LATENT = ("deepseek2",)  # keys are latent vectors, and values the first columns of them
ENCODERS = ("bert", "jina-bert-v2", "nomic-bert", "modern-bert")


def metadata(architecture: str) -> dict[str, Any]:
    latent = architecture in LATENT
    made: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "context_length": 2048,
        "embedding_length": 128 if latent else 256,
        "block_count": 2,
        "leading_dense_block_count": 1,
        "feed_forward_length": 192 if latent else 384,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "attention.head_count": 1 if latent else 4,
        "attention.head_count_kv": 1 if architecture == "qwen2" or latent else 4,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 1.0,
        "attention.sliding_window": 128,
        "attention.sliding_window_pattern": 2,
        "attention.q_lora_rank": 512,
        "attention.kv_lora_rank": 512,
        "attention.causal": architecture not in ENCODERS,
        "attn_logit_softcapping": 30.0,
        "final_logit_softcapping": 20.0,
        "expert_count": 2,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_feed_forward_length": 192,
    }
    if latent:
        made |= {
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
        }
    if architecture in ENCODERS:
        made |= {"pooling_type": 1}
    made = {f"{architecture}.{name}": value for name, value in made.items()}
    tokens = {"tokenizer.ggml.model": "none", "tokenizer.ggml.token_type_count": 2}
    return {"general.architecture": architecture} | made | tokens


@cache
def load_random(architecture: str) -> Any:
    made = call("gguf_init_empty", _pointer)
    kinds = {"bool": ctypes.c_bool, "u32": ctypes.c_uint32, "f32": ctypes.c_float}
    for name, value in metadata(architecture).items():
        at = ((_pointer, made), (ctypes.c_char_p, name.encode()))
        if isinstance(value, str):
            call("gguf_set_val_str", None, *at, (ctypes.c_char_p, value.encode()))
            continue
        kind = {bool: "bool", int: "u32", float: "f32"}[type(value)]
        call(f"gguf_set_val_{kind}", None, *at, (kinds[kind], value))
    model = call(
        "llama_model_init_from_user",
        _pointer,
        (_pointer, made),
        (_fill, _weights),
        (_pointer, None),
        model_parameters(),
    )
    assert model, architecture
    return model


@_fill
def _weights(tensor: int, _: None) -> None:
    at = (_pointer, tensor)
    name = call("ggml_get_name", ctypes.c_char_p, at)
    count = call("ggml_nelements", ctypes.c_int64, at)
    size = call("ggml_nbytes", ctypes.c_size_t, at)
    values = 0.15 * np.random.default_rng(zlib.crc32(name)).normal(size=count)
    if name.endswith(b"norm.weight"):
        values += 1.0
    values = values.astype({4: np.float32, 2: np.float16}[size // count])
    data = (_pointer, values.ctypes.data)
    call("ggml_backend_tensor_set", None, at, data, (ctypes.c_size_t, 0), (ctypes.c_size_t, size))
