"""llama.cpp's own C interface in the wheel of xllamacpp, by ctypes: what its server hides.

Run as a program, in a process of its own, since a plug-in stays once it is loaded. Reads a JSON
list from standard input: the plug-in's path or "", and jobs, each [name in JOBS, model, arguments].
Writes an npz archive to the file that is its argument: array j that job i returns, as "i.j". Arrays
are logits (outputs, tokens of the vocabulary), or embeddings (D,).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xllamacpp import xllamacpp as core

_pointer, _int32, _uint32, _float = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float
_bool, _size = ctypes.c_bool, ctypes.c_size_t
Array = NDArray[np.float32]
Text = str | list[int]  # or tokens


class _ModelParams(ctypes.Structure):
    # Only the defaults are used; as large as any version's.
    _fields_ = (("bytes", _pointer * 32),)


class _ContextParams(ctypes.Structure):
    _fields_ = (
        *((name, _uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, _uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, _int32) for name in ("n_threads", "n_threads_batch", "ctx_type")),
        *((name, _int32) for name in ("rope_scaling_type", "pooling_type", "attention_type")),
        ("flash_attn_type", _int32),
        ("rope", _float * 6),
        ("yarn_orig_ctx", _uint32),
        ("defrag_thold", _float),
        ("cb_eval", _pointer * 2),
        ("type_k", _int32),
        ("type_v", _int32),
        ("abort_callback", _pointer * 3),
        *((name, _bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
        *((name, _bool) for name in ("swa_full", "kv_unified")),
        ("rest", _pointer * 16),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", _int32),
        ("token", ctypes.POINTER(_int32)),
        ("embd", ctypes.POINTER(_float)),
        ("pos", ctypes.POINTER(_int32)),
        ("n_seq_id", ctypes.POINTER(_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def call(name: str, result: Any, *arguments: Any) -> Any:
    """Calls a function of C, whose arguments are pairs of type and value."""
    function = getattr(ctypes.CDLL(core.__file__), name)
    function.restype, function.argtypes = result, [kind for kind, _ in arguments]
    return function(*(value for _, value in arguments))


def model_parameters() -> tuple[Any, Any]:
    """llama.cpp's defaults, as an argument of call()."""
    return _ModelParams, call("llama_model_default_params", _ModelParams)


@cache
def load(model: str) -> Any:
    """A model from its file, or with made-up weights from "random:" and its architecture."""
    if model.startswith("random:"):
        from llama_random import load_random

        return load_random(model.removeprefix("random:"))
    file = (ctypes.c_char_p, model.encode())
    loaded = call("llama_model_load_from_file", _pointer, file, model_parameters())
    assert loaded, model
    return loaded


class Context:
    """A context of llama.cpp that reads tokens and tells logits or embeddings."""

    def __init__(self, model: str, **settings: Any) -> None:
        self.model = load(model)
        made = call("llama_context_default_params", _ContextParams)
        # The wheel's version has the fields as they are declared above.
        assert (made.n_batch, made.type_k, made.offload_kqv, made.swa_full) == (2048, 1, 1, 1)
        made.n_ctx = made.n_batch = 2048
        made.n_threads = made.n_threads_batch = 2
        made.flash_attn_type = 1
        for name, value in settings.items():
            assert hasattr(made, name), name
            setattr(made, name, value)
        self.batch_size = made.n_batch
        self.size = made.n_ctx
        self.context = call(
            "llama_init_from_model", _pointer, (_pointer, self.model), (_ContextParams, made)
        )
        assert self.context
        self.memory = call("llama_get_memory", _pointer, (_pointer, self.context))
        self.vocab = call("llama_model_get_vocab", _pointer, (_pointer, self.model))

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        call("llama_free", None, (_pointer, self.context))

    def tokens(self, text: Text, length: int | None = None) -> list[int]:
        """The first `length` tokens of a text."""
        if not isinstance(text, str):
            return text[:length]
        data = text.encode()
        room = (_int32 * (len(data) + 8))()
        count = call(
            "llama_tokenize",
            _int32,
            (_pointer, self.vocab),
            (ctypes.c_char_p, data),
            (_int32, len(data)),
            (_pointer, ctypes.addressof(room)),
            (_int32, len(room)),
            (_bool, True),
            (_bool, False),
        )
        assert count >= (length or 1)
        return list(room[:count][:length])

    def read(self, *sequences: tuple[int, int, Sequence[int]], every: int = 1 << 30) -> int:
        """Reads (sequence, first position, tokens) in one batch. Outputs are of each `every`-th
        token and of the last. Returns their number."""
        count = sum(len(tokens) for _, _, tokens in sequences)
        batch = call("llama_batch_init", _Batch, (_int32, count), (_int32, 0), (_int32, 1))
        batch.n_tokens = count
        at = outputs = 0
        for sequence, first, tokens in sequences:
            for i, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, first + i
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = (i + 1) % every == 0 or i + 1 == len(tokens)
                outputs += batch.logits[at]
                at += 1
        status = call("llama_decode", _int32, (_pointer, self.context), (_Batch, batch))
        call("llama_batch_free", None, (_Batch, batch))
        assert status == 0, f"llama_decode gave {status}"
        return outputs

    def logits(self, outputs: int) -> Array:
        """(outputs, tokens of the vocabulary) of the last batch."""
        width = call("llama_vocab_n_tokens", _int32, (_pointer, self.vocab))
        found = call("llama_get_logits", ctypes.POINTER(_float), (_pointer, self.context))
        return np.ctypeslib.as_array(found, (outputs, width)).copy()

    def embedding(self, sequence: int) -> Array:
        width = call("llama_model_n_embd", _int32, (_pointer, self.model))
        found = call(
            "llama_get_embeddings_seq",
            ctypes.POINTER(_float),
            (_pointer, self.context),
            (_int32, sequence),
        )
        return np.ctypeslib.as_array(found, (width,)).copy()

    def remove(self, sequence: int, first: int, end: int) -> None:
        positions = [(_int32, value) for value in (sequence, first, end)]
        assert call("llama_memory_seq_rm", _bool, (_pointer, self.memory), *positions)

    def shift(self, sequence: int, first: int, end: int, delta: int) -> None:
        positions = [(_int32, value) for value in (sequence, first, end, delta)]
        call("llama_memory_seq_add", None, (_pointer, self.memory), *positions)

    def copy(self, source: int, target: int) -> None:
        positions = [(_int32, value) for value in (source, target, -1, -1)]
        call("llama_memory_seq_cp", None, (_pointer, self.memory), *positions)


def embed(model: str, texts: list[Text], **settings: Any) -> list[Array]:
    """Embeddings of texts that are read in one batch."""
    with Context(model, embeddings=True, n_seq_max=len(texts), **settings) as context:
        context.read(*((i, 0, context.tokens(text)) for i, text in enumerate(texts)), every=1)
        return [context.embedding(i) for i in range(len(texts))]


def read(model: str, text: Text, length: int, **settings: Any) -> list[Array]:
    """A text in batches, and one more token."""
    with Context(model, **settings) as context:
        tokens = context.tokens(text, length)
        made = []
        for first in range(0, len(tokens), context.batch_size):
            batch = tokens[first : first + context.batch_size]
            made.append(context.logits(context.read((0, first, batch), every=64)))
        made.append(context.logits(context.read((0, len(tokens), tokens[:1]))))
        return made


def together(model: str, texts: list[Text], **settings: Any) -> list[Array]:
    """Texts that are read in one batch, and one more token of each."""
    with Context(model, n_seq_max=len(texts), **settings) as context:
        tokens = [context.tokens(text) for text in texts]
        count = context.read(*((i, 0, text) for i, text in enumerate(tokens)), every=16)
        made = [context.logits(count)]
        count = context.read(*((i, len(text), text[:1]) for i, text in enumerate(tokens)))
        return [*made, context.logits(count)]


def shifted(model: str, text: Text, length: int, **settings: Any) -> list[Array]:
    """A full cache drops half of what it has, moves the rest to the beginning and reads on."""
    chunk, keep = 128, 4
    with Context(model, **settings) as context:
        tokens = context.tokens(text, length)
        made = []
        used = 0
        for first in range(0, len(tokens), chunk):
            if used + chunk > context.size:
                drop = (used - keep) // 2
                context.remove(0, keep, keep + drop)
                context.shift(0, keep + drop, used, -drop)
                used -= drop
            batch = tokens[first : first + chunk]
            made.append(context.logits(context.read((0, used, batch))))
            used += len(batch)
        return made


def saved(model: str, text: Text, length: int, **settings: Any) -> list[Array]:
    """Half a text is read and saved; another context and sequence load it and read the rest."""
    with (
        Context(model, n_seq_max=2, **settings) as first,
        Context(model, n_seq_max=2, **settings) as second,
        tempfile.TemporaryDirectory() as folder,
    ):
        tokens = first.tokens(text, length)
        half = len(tokens) // 2
        first.read((1, 0, tokens[:half]))
        second.read((1, 0, tokens[:40]))
        file = (ctypes.c_char_p, os.path.join(folder, "state").encode())
        none = ((_pointer, None), (_size, 0))
        count = _size()
        save, restore = "llama_state_seq_save_file", "llama_state_seq_load_file"
        at = (_pointer, ctypes.addressof(count))
        assert call(save, _size, (_pointer, first.context), file, (_int32, 1), *none)
        assert call(restore, _size, (_pointer, second.context), file, (_int32, 0), *none, at)
        made = []
        for context, sequence in ((first, 1), (second, 0)):
            made.append(context.logits(context.read((sequence, half, tokens[half:]))))
        return made


def branched(model: str, text: Text, length: int, **settings: Any) -> list[Array]:
    """Two sequences share a beginning and go on differently in one batch; then the end of one is
    dropped, and another text follows."""
    with Context(model, n_seq_max=2, **settings) as context:
        tokens = context.tokens(text, length)
        half = len(tokens) // 2
        rest = tokens[half:]
        context.read((0, 0, tokens[:half]))
        context.copy(0, 1)
        made = [context.logits(context.read((0, half, rest), (1, half, rest[::-1])))]
        context.remove(1, half + 20, -1)
        made.append(context.logits(context.read((1, half + 20, tokens[:100]))))
        return made


JOBS: dict[str, Callable[..., list[Array]]] = {
    job.__name__: job for job in (embed, read, together, shifted, saved, branched)
}


def main() -> None:
    plugin, jobs = json.load(sys.stdin)
    call("llama_backend_init", None)
    if plugin and not call("ggml_backend_load", _pointer, (ctypes.c_char_p, plugin.encode())):
        sys.exit("the plug-in was refused")
    made = [JOBS[name](model, **given) for name, model, given in jobs]
    arrays = {f"{i}.{j}": array for i, job in enumerate(made) for j, array in enumerate(job)}
    np.savez(sys.argv[1], **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    # llama_random imports this module by its name.
    sys.modules["llama_host"] = sys.modules["__main__"]
    main()
