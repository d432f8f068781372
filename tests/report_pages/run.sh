#!/usr/bin/env bash
# run.sh [--screenshots FOLDER] [PAGE ...]: what a built program writes over the demo's small base (the pages of drift, merge,
# sweep and plan, the picture of train), a page with everything that pages can hold, and the pages named, laid out in Debian's
# Chromium.
set -euo pipefail
options=()
if [ "${1:-}" = --screenshots ]; then
  options=(--screenshots "$(realpath -m "$2")")
  shift 2
fi
named=()
for page in "$@"; do named+=("$(realpath "$page")"); done
cd "$(dirname "$0")/../.."
./tools/install_packages.sh chromium
cmake --build build --target write_sample_page qlora_engine make_demo_data
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

build/tools/make_demo_data orders 640 1 >"$folder/train.jsonl"
build/tools/make_demo_data orders 24 2 >"$folder/test.jsonl"
# run COMMAND OUTPUT [FIELD=VALUE ...]: the demo's job, cut short.
run() {
  local command=$1 output=$2 fields=()
  shift 2
  for field in training.max_steps=20 training.eval_steps=5 training.save_steps=20 eval.exact_match=false "$@"; do
    fields+=(--set "$field")
  done
  build/tools/qlora_engine "$command" tools/demo/job.textproto --set "output_dir=$folder/$output" \
    --set "data.train_file=$folder/train.jsonl" --set "data.eval_file=$folder/test.jsonl" "${fields[@]}" \
    >"$folder/$output.$command.log" 2>&1 || { local code=$?; tail -n 20 "$folder/$output.$command.log"; return $code; }
}
run train out
run drift out
run drift adapted "drift.adapter=$folder/out" drift.compare_types=false
run merge out merge.accept_loss=true
run merge refused "merge.adapter=$folder/out" merge.into=BASE merge.max_loss_increase=0 || [ $? = 79 ]
run sweep sweep sweep.ranks=2,4,8 gates.max_eval_loss_increase=0
run plan plan plan.report=true 'economics.instruction=Read the order out of the message as one record of the fixed form.' \
  economics.calls_per_day=40000 economics.price_per_million_prompt_tokens=0.5 economics.cost_per_hour=1.2
# A card that a job does not fit, with changes, modes and ranks. It ends with 71 for that.
cat >"$folder/large.textproto" <<JOB
model: "bench/models/llama_33b" output_dir: "$folder/large" mode: LORA
plan { card: "RTX 4090" report: true } economics { cost_per_hour: 1.2 }
JOB
build/tools/qlora_engine plan "$folder/large.textproto" >/dev/null 2>&1 || [ $? = 71 ]
build/tests/write_sample_page "$folder/sample.html"
pages=("$folder"/{out,adapted}/drift/drift.html "$folder"/{out,refused}/merge/merge.html "$folder/sweep/sweep_report.html"
  "$folder"/{plan,large}/plan_report.html "$folder/out/loss_curve.svg" "$folder/sample.html")
tests/report_pages/check_pages.py "${options[@]}" "${pages[@]}" "${named[@]}"
