#!/usr/bin/env bash
# Installs what is missing, builds everything and runs the ordinary tests; needs no GPU. 15 minutes at most.
# Where there is a CUDA compiler the kernels are compiled too, for two architectures out of six.
set -euo pipefail
cd "$(dirname "$0")/.."
./tools/install_packages.sh libgtest-dev libgmock-dev libopenmpi-dev openmpi-bin
build=${QLORA_BUILD_DIR:-build}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON \
  -DQLORA_CUDA=AUTO "-DQLORA_CUDA_ARCHITECTURES=80-real;90a-real" >/dev/null
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure -j "$(nproc)"
