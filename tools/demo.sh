#!/usr/bin/env bash
# The main job from nothing: installs what is missing, builds the program, makes the demo's data, trains an
# adapter over the 4-bit base of tools/demo/base, and shows what came of it. Results: build/demo/out.
set -euo pipefail
cd "$(dirname "$0")/.."

./tools/install_packages.sh
# The CUDA backend takes minutes to compile: for this machine's cards where it has some, else not at all.
cuda=(-DQLORA_CUDA=OFF)
if command -v nvidia-smi >/dev/null; then cuda=(-DQLORA_CUDA=AUTO -DQLORA_CUDA_ARCHITECTURES=native); fi
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF "${cuda[@]}" >/dev/null
cmake --build build --target qlora_engine make_demo_data
engine=build/tools/qlora_engine
job=tools/demo/job.textproto
demo=build/demo

began=$SECONDS
mkdir -p "$demo"
build/tools/make_demo_data orders 8000 1 >"$demo/train.jsonl"
build/tools/make_demo_data orders 200 2 >"$demo/test.jsonl"

echo
echo "== training: $job"
"$engine" train "$job" --set overwrite_output_dir=true

# The first held-out message, asked of the base alone and of the base with the adapter.
record=$(head -n 1 "$demo/test.jsonl")
message=$(sed 's/^{"prompt": "\(.*\)\\n", "completion": .*$/\1/' <<<"$record")
wanted=$(sed 's/^.*"completion": "\(.*\)"}$/\1/' <<<"$record")
answer() {
  "$engine" generate "$job" --set "generate.prompt=$message"$'\n' --set generate.max_new_tokens=48 "$@" | head -n 1
}
echo
echo "== a held-out message"
echo "   $message"
echo "   wanted:                $wanted"
echo "   base:                  $(answer)"
echo "   base with the adapter: $(answer --set "generate.adapter=$demo/out")"

echo
echo "== held-out loss and exact records, before and after"
sed -nE 's/^\{"step":([0-9]+),.*"eval_loss":([0-9.]{1,6}).*"eval_exact_match":([0-9.]{1,5}).*/   step \1: loss \2, exact \3/p' \
  "$demo/out/metrics.jsonl"
echo
echo "== results in $demo/out"
echo "   adapter_model.safetensors, adapter_config.json   the adapter, as PEFT and vLLM load it"
echo "   loss_curve.svg                                   the loss curve"
echo "   metrics.jsonl, runs/                             the log; tensorboard --logdir $demo/out/runs"
echo "   qlora_run.json                                   hashes, sizes, speed"
echo "   took $((SECONDS - began)) s without installing and building"
