"""Names that pickles of smyrf 0.2 hold; what they name lies in `smyrf.integrations` now."""

from smyrf.integrations.transformers.interface import _imported

__all__ = ["_imported"]
