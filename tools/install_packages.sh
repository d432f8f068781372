#!/usr/bin/env bash
# Installs what the build needs on Debian 12 and is not there yet. Needs root only for that.
set -euo pipefail
packages=(g++ cmake ninja-build pkg-config libabsl-dev protobuf-compiler libprotobuf-dev libpcre2-dev
          nlohmann-json3-dev "$@")
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing: ${missing[*]}"
run=()
[ "$(id -u)" -eq 0 ] || run=(sudo)
"${run[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
