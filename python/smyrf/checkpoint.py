"""Moved out of the package."""

raise ImportError("smyrf.checkpoint: is examples/checkpoint.py of smyrf's source tree now")
