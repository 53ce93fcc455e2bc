"""SMYRF in BigGAN: the self-attention of `pytorch_pretrained_biggan`, switched in place and back.

Its layer has one head; queries are all pixels of a feature map, keys and values a quarter as many
after max pooling, and logits are not scaled.
"""

from smyrf.integrations.gan import _Choice, _SmyrfSelfAttn, disable, enable, move_attention

# Models that were pickled with 0.2 name the classes here.
__all__ = ["_Choice", "_SmyrfSelfAttn", "disable", "enable", "move_attention"]
