"""Moved out of the package."""

raise ImportError(
    "smyrf.whisper: is tools/convert_whisper.py of smyrf's source tree now, which writes a folder "
    "in transformers' format: python tools/convert_whisper.py SOURCE TARGET"
)
