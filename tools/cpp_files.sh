#!/usr/bin/env bash
# Lists the C++ files of the tree.
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
find include src bindings tests integrations examples benchmarks \( -name '*.h' -o -name '*.cc' \) | sort
