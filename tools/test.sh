#!/usr/bin/env bash
# Runs every test and check and says at the end which failed. Needs tools/setup.sh release asan-ubsan tsan fuzz.
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
export HF_HUB_OFFLINE=1
# Several tests run at once: threads that spin while they wait would take each other's cores.
export OMP_WAIT_POLICY=passive

failed=()
times=()
check() { # check NAME COMMAND...
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed+=("$name")
  times+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

# Seed and number are fixed, and compared values, addresses among them, guide nothing: every run takes
# the same inputs, so that what it finds is new in the change at hand. libFuzzer always prints a
# dictionary for its next run, which nobody reads here.
fuzz() {
  build/fuzz/tests/fuzz/smyrf_fuzz -seed=1 -runs=8000 -len_control=0 -max_len=256 -timeout=30 \
    -artifact_prefix=build/fuzz/ -use_cmp=0 -verbosity=0 -print_funcs=0 2>&1 |
    sed '/^###### Recommended dictionary/,/^###### End of recommended/d'
}

mapfile -t cpp < <(tools/cpp_files.sh)
mapfile -t tidy < <(grep -L 'foreach_target\.h' "${cpp[@]}" | grep '\.cc$' | grep -vE '^(examples|tests/fuzz)/')

# omp.h comes with GCC, whose own headers must stay behind clang-tidy's.
gcc_headers=$(g++ -print-file-name=include)

check 'C++ tests (ctest)' ctest --preset release
check 'C++ tests, subnormal numbers flushed (ctest)' ctest --preset flushed
check 'C++ tests under sanitizers (ctest)' ctest --preset asan-ubsan
check 'C++ tests of threads under the thread sanitizer (ctest)' ctest --preset tsan
check 'fuzzing, about 30 s' fuzz
# A worker that hangs after a fork must end the run, not stop it.
check 'Python tests (pytest)' timeout 1800 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal
check 'Python tests, subnormal numbers flushed (pytest)' env LD_LIBRARY_PATH=build/release/tests \
  LD_PRELOAD=libflush_subnormals.so .venv/bin/python -m pytest -q -k 'not compiled' \
  tests/python/test_{float_environment,estimate_merge,torch_gradients}.py
# ccache tells compilers apart by their names: under that of the release build it compiles nothing again.
check 'wheel' env CXX=c++ CMAKE_CXX_COMPILER_LAUNCHER=ccache tools/wheel.sh .venv/bin/python
check 'clang-format' .venv/bin/clang-format --dry-run --Werror "${cpp[@]}"
check 'clang-tidy' xargs -0 -n 1 -P "$(nproc)" .venv/bin/clang-tidy --quiet -p build/release \
  --extra-arg=-idirafter --extra-arg="$gcc_headers" \
  < <(printf '%s\0' "${tidy[@]}")
check 'ruff format' .venv/bin/ruff format --check
check 'ruff' .venv/bin/ruff check
check 'mypy' .venv/bin/mypy
check 'sizes' .venv/bin/python tools/sizes.py
check 'shellcheck' .venv/bin/shellcheck .ci/run tools/*.sh

echo
printf '%s\n' "${times[@]}"
if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo 'Everything passed.'
