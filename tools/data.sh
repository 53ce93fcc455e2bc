#!/usr/bin/env bash
# Brings texts and speech for demo, tests and benchmarks into build/data, out of Debian packages that
# are unpacked and not installed: the dictionaries would bring a server along.
set -euo pipefail
cd -P -- "$(dirname -- "$0")/.."
packages=(dict-devil dict-jargon pocketsphinx-testdata)
[[ $(cat build/data/packages 2>/dev/null) == "${packages[*]}" ]] && exit
mkdir -p build
download=$(mktemp -d build/data.XXXXXX)
trap 'rm -rf "$download"' EXIT
mkdir "$download/unpacked"
fetch() { (cd "$download" && apt-get download "${packages[@]}"); }
fetch || { ((EUID == 0)) && apt-get update && fetch; } || {
  echo "smyrf: apt-get can't download ${packages[*]}; type 'apt-get update' as root, then again." >&2
  exit 1
}
for package in "$download"/*.deb; do dpkg -x "$package" "$download/unpacked"; done
printf '%s\n' "${packages[*]}" >"$download/unpacked/packages"
rm -rf build/data
mv "$download/unpacked" build/data
