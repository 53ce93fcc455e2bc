#!/usr/bin/env bash
# Rewrites the sources the way the format check of `make test` wants them.
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
mapfile -t cpp < <(tools/cpp_files.sh)
.venv/bin/clang-format -i "${cpp[@]}"
.venv/bin/ruff format
.venv/bin/ruff check --fix
