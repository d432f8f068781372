#!/usr/bin/env bash
# Packs what bench/gpu_qualify.sh runs into one folder that needs nothing of the other machine but its NVIDIA
# driver: the executables, the libraries they were built with, and the tests' data. The rivals and the table also want
# a Python there, the rivals one with PyTorch.
#   bench/gpu_bundle.sh [FOLDER]      (default: gpu_bundle)
# QLORA_CUDA_ARCHITECTURES picks the cards, e.g. 90a-real; the default is all.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_bundle}
build=${QLORA_BUILD_DIR:-build-gpu}
./tools/install_packages.sh libgtest-dev libgmock-dev libbenchmark-dev
options=()
[ -z "${QLORA_CUDA_ARCHITECTURES:-}" ] || options+=("-DQLORA_CUDA_ARCHITECTURES=$QLORA_CUDA_ARCHITECTURES")
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DQLORA_BENCH=ON -DQLORA_CUDA=ON \
  "${options[@]}" >/dev/null
cmake --build "$build" --target cuda_tests op_bench step_bench qlora_engine
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/tests"
cp "$build/tests/cuda_tests" "$build/bench/op_bench" "$build/bench/step_bench" "$build/tools/qlora_engine" "$out/bin/"
strip "$out"/bin/*
# The system's C library stays out: it must fit that machine's loader.
for program in "$out"/bin/*; do
  ldd "$program" | awk '/=> \//{print $3}' | grep -vE '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*)\.so' || true
done | sort -u | xargs -I{} cp -L {} "$out/lib/"
cp -r bench/models bench/gpu_qualify.sh bench/gpu_table.py bench/compare_peers_gpu.py bench/peer_models.py "$out/"
mkdir -p "$out/tests/golden"
cp -r tests/golden/models "$out/tests/golden/"
du -sh "$out" | cut -f1
