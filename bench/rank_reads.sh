#!/usr/bin/env bash
# What each of 1, 2 and 4 ranks of this machine reads, and how long it takes until all have made their first step.
#   bench/rank_reads.sh ENGINE MODEL_FOLDER GSM8K_FOLDER OUTPUT_FOLDER
# Prints for each rank the bytes of its read calls (rchar of /proc/PID/io), and those that came from the disk, mapped
# files included (read_bytes), with the model's file not in the page cache when it begins.
set -euo pipefail
engine=$(realpath "$1") model=$(realpath "$2") data=$(realpath "$3") out=$4
job=$(dirname "$0")/gsm8k.textproto
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mkdir -p "$out"
for ranks in 1 2 4; do
  # By an empty write that asks for it: reading permission is enough.
  dd if="$model/model.safetensors" iflag=nocache count=0 status=none
  begin=$EPOCHREALTIME
  # A process's counters take in those of the children that it has waited for.
  mpirun -n $ranks --oversubscribe --bind-to none bash -c '
    "${@:2}" >"$1/rank$OMPI_COMM_WORLD_RANK.log"
    awk -v rank="$OMPI_COMM_WORLD_RANK" "
      /^rchar/ { called = \$2 } /^read_bytes/ { disk = \$2 }
      END { printf \"  rank %d  %8.1f MB read, %8.1f MB from the disk\n\", rank, called / 1e6, disk / 1e6 }" /proc/$$/io' \
    - "$out" "$engine" train "$job" --set "model=$model" --set "data.train_file=$data/train.jsonl" \
    --set "output_dir=$out/of$ranks" --set overwrite_output_dir=true --set data.eval_file= \
    --set training.eval_steps=0 --set training.max_steps=1 --set training.per_device_train_batch_size=1 \
    --set training.gradient_accumulation_steps=1 | sort
  echo "$begin $EPOCHREALTIME" | awk -v ranks=$ranks '{ printf "%d ranks: %.1f s\n", ranks, $2 - $1 }'
done
