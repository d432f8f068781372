#!/usr/bin/env bash
# Installs what is missing, builds everything for the CPU and runs the ordinary tests. 15 minutes at most.
set -euo pipefail
cd "$(dirname "$0")/.."
./tools/install_packages.sh libgtest-dev libgmock-dev
build=${QLORA_BUILD_DIR:-build}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON >/dev/null
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure -j "$(nproc)"
