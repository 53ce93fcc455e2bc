"""Moved out of the package."""

raise ImportError("smyrf.ctranslate2_file: is tools/ctranslate2_file.py of smyrf's source tree now")
