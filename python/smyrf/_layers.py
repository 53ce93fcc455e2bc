"""Names that pickles of smyrf 0.2 hold; what they name lies in `smyrf.integrations` now."""

from smyrf.integrations.transformers.layers import Layer, Switched, _copied

__all__ = ["Layer", "Switched", "_copied"]
