"""Names that pickles of smyrf 0.2 hold; what they name lies in `smyrf.integrations` now."""

from smyrf.integrations.transformers.masks import BoolMask

__all__ = ["BoolMask"]
