"""smyrf inside other libraries: transformers, BigGAN, and PyTorch's own attention function.

Programs import `smyrf.transformers`, `smyrf.gan` and `smyrf.torch`, which have the public names.
"""
