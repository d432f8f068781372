#!/usr/bin/env bash
# One job in the three modes, side by side: quality, memory, time, size.
#   bench/gsm8k.sh ENGINE MODEL_FOLDER GSM8K_FOLDER OUTPUT_FOLDER
# GSM8K_FOLDER holds train.jsonl and test.jsonl ({"question", "answer"}). Prints a table at the end.
set -euo pipefail
engine=$(realpath "$1") model=$(realpath "$2") data=$(realpath "$3") out=$4
job=$(dirname "$0")/gsm8k.textproto
mkdir -p "$out"
for mode in QLORA LORA FULL; do
  # A rate of ten times less where all weights move.
  rate=1e-3
  [ $mode = FULL ] && rate=1e-4
  "$engine" train "$job" --set "model=$model" --set "output_dir=$out/$mode" --set "mode=$mode" \
    --set "data.train_file=$data/train.jsonl" --set "data.eval_file=$data/test.jsonl" \
    --set "training.learning_rate=$rate" | tee "$out/$mode.log"
done
echo
echo "mode    loss before  loss after  peak memory   seconds  result"
for mode in QLORA LORA FULL; do
  before=$(sed -nE 's/^\{"step":0,.*"eval_loss":([0-9.]{6}).*/\1/p' "$out/$mode/metrics.jsonl")
  after=$(sed -nE 's/^\{"step":100,.*"eval_loss":([0-9.]{6}).*/\1/p' "$out/$mode/metrics.jsonl")
  peak=$(sed -nE 's/^done: .*peak memory (.*)$/\1/p' "$out/$mode.log")
  seconds=$(sed -nE 's/.*"train_seconds": ([0-9]+).*/\1/p' "$out/$mode/qlora_run.json")
  result=$out/$mode/adapter_model.safetensors
  [ $mode = FULL ] && result=$out/$mode/model.safetensors
  size=$(du -h --apparent-size "$result" | cut -f1)
  printf '%-6s  %11s  %10s  %11s  %8s  %s\n' "$mode" "$before" "$after" "$peak" "$seconds" "$size"
done
