"""`replace_sdpa`: smyrf in place of PyTorch's `scaled_dot_product_attention`.

Importing this module also registers the operator `smyrf::attention`.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    from smyrf._extra import to_install

    raise ImportError(f"smyrf.torch needs PyTorch; type: {to_install('torch')}") from None

import smyrf._tensors  # noqa: F401  # the operator
from smyrf.integrations.sdpa import Replacement, replace_sdpa

__all__ = ["Replacement", "replace_sdpa"]
