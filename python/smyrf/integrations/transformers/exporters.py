"""Refuses exports to formats that have no operator for smyrf's attention."""

from __future__ import annotations

import inspect

import torch

from smyrf.integrations.transformers.masks import is_traced


def refuse_exporters(layer: str) -> None:
    """Raise NotImplementedError where a layer runs for an exporter that can't take smyrf.

    Otherwise the exporter fails later, and names an operator that the user has never heard of.
    """
    if not (is_traced() or torch.compiler.is_compiling()):
        return
    exporter = _exporter()
    if exporter:
        raise NotImplementedError(
            f"{layer}: {exporter} has no operator for smyrf's attention; before exporting call "
            "smyrf.transformers.disable(model), or for a model loaded with "
            "attn_implementation='smyrf' model.set_attn_implementation('sdpa')"
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _exporter() -> str:
    """The exporter that runs; "" for none, or for one that takes any operator (torch.export)."""
    if torch.onnx.is_in_onnx_export():
        return "ONNX"
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("openvino."):
            return "OpenVINO"
        frame = frame.f_back
    return ""
