#!/usr/bin/env bash
# Qualifies the CUDA backend on the card of this machine; needs no network. Run it from a bundle that
# bench/gpu_bundle.sh made. Stops at the first part that fails.
#   gpu_qualify.sh [RESULTS_FOLDER] [PART ...]      parts: tests sanitizer steps; default: all
# tests      every op against its fp64 reference, whole training runs against the CPU backend
# sanitizer  memcheck, racecheck, initcheck and synccheck over one seed of the op tests, where compute-sanitizer is
# steps      training steps of the models in models/, synthetic weights, into RESULTS_FOLDER/steps.json
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
results=$(mkdir -p "${1:-results}" && cd "${1:-results}" && pwd)
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=(tests sanitizer steps)
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} QLORA_TESTS_DIR=$here/tests
nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm --format=csv,noheader |
  tee "$results/card.txt"

run_tests() { "$here/bin/cuda_tests" --gtest_brief=1 2>&1 | tee "$results/tests.txt"; }

run_sanitizer() {
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here: this part is not done"; return 1; }
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$here/bin/cuda_tests" --gtest_brief=1 \
      --gtest_filter='All/CudaOpTest*:SkinnyTest*' 2>&1 | tee "$results/$tool.txt"
  done
}

run_steps() {
  rm -f "$results/steps.json"
  for model in qwen3_0.6b qwen3_1.7b qwen3_4b qwen3_8b qwen3_14b llama3_8b; do
    "$here/bin/step_bench" --model="$here/models/$model" --device=cuda --rank=16 --tokens=2048 --rows=2 \
      --accumulation=4 --json="$results/steps.json" | tee "$results/$model.txt" | tail -1
  done
}

for part in "${parts[@]}"; do
  echo "=== $part"
  "run_$part"
done
