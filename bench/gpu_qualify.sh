#!/usr/bin/env bash
# Qualifies the CUDA backend on the card of this machine; needs no network.
#   gpu_qualify.sh [PART ...]
# tests     every op against its fp64 reference, whole training runs against the CPU backend
# sanitize  compute-sanitizer's memcheck, racecheck, initcheck and synccheck over the op tests
# ops       every op at the shapes of training steps, with its share of what the card can do: ops_*.json
# steps     training steps of the models in models/, synthetic weights: steps.json
# memory    the largest models in the least memory: memory.json
# peers     the same by PyTorch, bitsandbytes and PEFT, as far as Python has them: peers.json
# table     README.md from these files
# Without a part all of them, in this order, about 25 minutes at most. A part that fails does not stop the others;
# which failed is said at the end, and the exit code is 1. Exit codes besides: 64 a wrong part, 69 no usable GPU.
#
# Runs from a bundle of bench/gpu_bundle.sh, or from the source with a build (QLORA_BUILD_DIR, default build-gpu).
# Results go to QLORA_RESULTS (default: results/ beside this file)/<card>/, what programs print to logs/ there.
# QLORA_PYTHON names the Python that has torch. A part's seconds: QLORA_SECONDS_<PART>, e.g. QLORA_SECONDS_TESTS=600.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${QLORA_PYTHON:-python3}
all=(tests sanitize ops steps memory peers table)
models=(qwen3_0.6b qwen3_1.7b qwen3_4b qwen3_8b llama3_8b qwen3_14b)

if [ -d "$here/bin" ]; then
  export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} QLORA_TESTS_DIR=$here/tests
  cuda_tests=$here/bin/cuda_tests op_bench=$here/bin/op_bench step_bench=$here/bin/step_bench
else
  build=${QLORA_BUILD_DIR:-$here/../build-gpu}
  export QLORA_TESTS_DIR=$here/../tests
  cuda_tests=$build/tests/cuda_tests op_bench=$build/bench/op_bench step_bench=$build/bench/step_bench
fi

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
for part in "${parts[@]}"; do
  [[ " ${all[*]} " == *" $part "* ]] || { echo "gpu_qualify.sh: no part $part; parts: ${all[*]}" >&2; exit 64; }
done

query() { nvidia-smi --query-gpu="$1" --id=0 --format=csv,noheader 2>/dev/null; }
if [ -z "${QLORA_CARD:-}" ] && ! name=$(query name); then
  echo "gpu_qualify.sh: nvidia-smi finds no GPU here; QLORA_CARD=NAME makes a table of recorded results" >&2
  exit 69
fi
name=${QLORA_CARD:-$name}
card=$(tr '[:upper:]' '[:lower:]' <<<"${name#NVIDIA }" | tr -cs 'a-z0-9\n' '_')
results=${QLORA_RESULTS:-$here/results}/$card
mkdir -p "$results/logs" || exit 1
if facts=$(query name,compute_cap,driver_version,memory.total,clocks.max.sm,power.limit); then
  echo "$facts" >"$results/card.txt"
fi

# limited SECONDS LOG COMMAND ...: the command's output goes to the log and its end to the screen.
limited() {
  local seconds=$1 log=$results/logs/$2 code=0
  shift 2
  if [ ! -x "$1" ] && ! command -v "$1" >/dev/null; then
    echo "  $1 is not here" | tee "$log"
    return 1
  fi
  timeout --kill-after=5 "$seconds" "$@" >"$log" 2>&1 || code=$?
  tail -n 3 "$log" | sed 's/^/  /'
  case $code in
    124 | 137) echo "  stopped after $seconds seconds: $1" | tee -a "$log" ;;
  esac
  return "$code"
}

part_tests() { limited "$1" tests.txt "$cuda_tests" --gtest_brief=1; }

part_sanitize() {
  local code=0 tool
  for tool in memcheck racecheck initcheck synccheck; do
    echo "  == $tool"
    limited $(($1 / 4)) "$tool.txt" compute-sanitizer --tool "$tool" --error-exitcode 1 "$cuda_tests" --gtest_brief=1 \
      --gtest_filter="${QLORA_SANITIZE_TESTS:-All/CudaOpTest*:SkinnyTest*}" || code=1
  done
  return $code
}

# op_group SECONDS NAME FILTER: a group that is stopped leaves the other's figures.
op_group() {
  local file=$results/ops_$2.json
  echo "  == $2"
  limited "$1" "ops_$2.txt" "$op_bench" --device=cuda --benchmark_min_time=0.05 --benchmark_filter="$3" \
    --benchmark_out="$file.new" --benchmark_out_format=json && mv "$file.new" "$file"
}

part_ops() {
  local code=0
  op_group $(($1 * 7 / 10)) linear '^linear_(forward|backward)' || code=1
  op_group $(($1 * 3 / 10)) other '-^linear_(forward|backward)' || code=1
  return $code
}

# step SECONDS FILE MODEL [FLAG ...]
step() {
  local seconds=$1 file=$2 model=$3
  shift 3
  echo "  == $model $*"
  limited "$seconds" "step_$model.txt" "$step_bench" --model="$here/models/$model" --device=cuda \
    --json="$results/$file.new" "$@"
}

part_steps() {
  local code=0 model
  rm -f "$results/steps.json.new"
  for model in "${models[@]}"; do
    step $(($1 / ${#models[@]})) steps.json "$model" --rank=16 --tokens=2048 --rows=2 --accumulation=4 || code=1
  done
  [ ! -f "$results/steps.json.new" ] || mv "$results/steps.json.new" "$results/steps.json"
  return $code
}

# The plan gets what the table's limit leaves beside the driver's context and libraries.
part_memory() {
  local code=0 common=(--rank=64 --rows=1 --accumulation=16 --recompute=FULL --paged=1 --steps=1)
  rm -f "$results/memory.json.new"
  step $(($1 * 7 / 10)) memory.json llama_65b --tokens=2048 --memory_limit=47000000000 "${common[@]}" || code=1
  step $(($1 * 3 / 10)) memory.json llama_33b --tokens=1024 --memory_limit=23000000000 "${common[@]}" || code=1
  [ ! -f "$results/memory.json.new" ] || mv "$results/memory.json.new" "$results/memory.json"
  return $code
}

part_peers() {
  limited "$1" peers.txt "$python" "$here/compare_peers_gpu.py" all --out "$results/peers.json" \
    --models "$here/models" --seconds $(($1 - 10))
}

part_table() { limited "$1" table.txt "$python" "$here/gpu_table.py" "$results"; }

declare -A seconds=([tests]=300 [sanitize]=320 [ops]=220 [steps]=210 [memory]=140 [peers]=300 [table]=10)
failed=()
for part in "${parts[@]}"; do
  limit=QLORA_SECONDS_${part^^}
  limit=${!limit:-${seconds[$part]}}
  echo "=== $part, at most $limit s"
  SECONDS=0
  verdict=passed
  "part_$part" "$limit" || { verdict=failed; failed+=("$part"); }
  echo "  $part $verdict after $SECONDS s"
  # The last verdict on each part.
  { grep -v "^$part " "$results/parts.txt" 2>/dev/null; echo "$part $verdict $SECONDS"; } >"$results/parts.new"
  mv "$results/parts.new" "$results/parts.txt"
done
echo "results: $results"
[ ${#failed[@]} -eq 0 ] || { echo "gpu_qualify.sh: failed: ${failed[*]}" >&2; exit 1; }
