"""Word error rate, as speech recognition counts it."""

from __future__ import annotations

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

# Whisper's own rules: case and punctuation off, "Mr." is "mister", "I'm" is "i am". Without its
# list of British spellings, which comes with the tokenizer's files and not with every model.
_normalize = EnglishTextNormalizer({})


def error_rate(reference: str, written: str) -> float | None:
    """Words to replace, insert or delete to turn `written` into `reference`, over its words.

    Both are normalised first. Can exceed 1. Where the reference holds no word it is 0
    if none was written either, else None.
    """
    wanted, got = _normalize(reference).strip(), _normalize(written).strip()
    if not wanted:
        return None if got else 0.0
    return float(jiwer.wer(wanted, got))
