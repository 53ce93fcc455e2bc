#!/usr/bin/env bash
# The main job on three models: a text encoder and a language model on a book, and speech recognition
# on a reading.
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
export HF_HUB_OFFLINE=1

.venv/bin/smyrf compare minilm devil --method tree --method lsh
.venv/bin/smyrf compare whisper librivox --method tree --method lsh
.venv/bin/smyrf compare smollm2 devil --method tree --method lsh
