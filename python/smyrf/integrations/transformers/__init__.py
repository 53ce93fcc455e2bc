"""smyrf as an attention implementation of transformers.

Importing this package, or any module in it, registers an attention function and a mask function
under the name "smyrf". A pickled model names functions in here: whoever loads it registers them.
"""

from __future__ import annotations

from smyrf._extra import missing_extra

try:
    import torch  # noqa: F401  # before transformers, which says less where it is missing
    from transformers import AttentionInterface, AttentionMaskInterface

    from smyrf.integrations.transformers.forward import attention_forward
    from smyrf.integrations.transformers.interface import NAME, watch_loading
    from smyrf.integrations.transformers.masks import smyrf_mask
    from smyrf.integrations.transformers.switch import disable, enable

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, smyrf_mask)
    watch_loading()
except ImportError as error:
    needed = {"torch": "2.6", "transformers": "5.4"}
    raise ImportError(
        missing_extra("smyrf.transformers", "transformers", needed, error), name=error.name
    ) from error

__all__ = ["NAME", "disable", "enable"]
