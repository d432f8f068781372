#!/usr/bin/env bash
# Builds with sanitizers and runs the tests: all, or those of some executables whose names match a pattern:
#   tools/sanitize.sh address,undefined
#   tools/sanitize.sh thread '*EqualBytes*:*Threads*' kernels_tests thread_tests
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizers=${1:?usage: tools/sanitize.sh SANITIZERS [PATTERN [TARGET ...]]}
pattern=${2:-*}
targets=("${@:3}")
./tools/install_packages.sh libgtest-dev libgmock-dev libopenmpi-dev openmpi-bin
build=build-${sanitizers//,/-}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -DNDEBUG" -DBUILD_TESTING=ON \
  -DQLORA_SANITIZE="$sanitizers" -DQLORA_CUDA=OFF >/dev/null
cmake --build "$build" ${targets:+--target "${targets[@]}"}
names=$(printf '|%s' "${targets[@]%_tests}")
GTEST_FILTER=$pattern ctest --test-dir "$build" --output-on-failure -j "$(nproc)" -R "^(${names#|})"
