#!/usr/bin/env bash
# Sets up what `make test` needs and leaves alone what is already there.
# Usage: tools/setup.sh CMAKE_PRESET...   the presets to build; the compiler works while pip downloads
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
. tools/environment.sh

# Measured with `du -sh .venv` and the sizes that pip prints as it downloads.
download="3.1 GB, 5.8 GB when installed (PyTorch and its CUDA libraries, which the package index offers only together)"

# Only those who test need the second compiler and the package tool, and compile the same files again
# for the wheel.
if [[ " $* " == *" fuzz "* ]]; then
  debian_packages+=(clang libclang-rt-dev pkgconf ccache)
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi

build() {
  local preset
  for preset in "$@"; do
    configure "$preset"
    cmake --build --preset "$preset"
  done
}

install_debian_packages
unpack_data
make_environment
if [[ $(cat .venv/requirements 2>/dev/null) != "$wanted" ]]; then
  # Without this file an environment counts as half made: an interrupted pip leaves packages that
  # look installed.
  rm -f .venv/requirements
  echo "== Python packages, once: a download of $download"
  start build-tools pip install -r tools/requirements-build.txt
  finish build-tools "what the extension is built with"
  start build build "$@"
  start pip install_requirements
  finish pip "download and install"
  printf '%s\n' "$wanted" >.venv/requirements
else
  start build build "$@"
fi
link_tree
finish build "C++ build ($*)"
convert_whisper
