#!/usr/bin/env bash
# Lines of each parser that the committed inputs of the fuzzer reach. Fails where they are fewer than 90 %.
#   tools/coverage.sh            the table
#   tools/coverage.sh manifest   that parser's sources with the count of each line
set -euo pipefail
cd "$(dirname "$0")/.."
least=90
./tools/install_packages.sh clang-14 llvm-14 libclang-rt-14-dev libgtest-dev libgmock-dev
build=build-coverage
cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++-14 -DCMAKE_BUILD_TYPE=None -DBUILD_TESTING=ON \
  -DCMAKE_CXX_FLAGS="-O0 -fprofile-instr-generate -fcoverage-mapping" -DQLORA_SANITIZE=fuzzer-no-link -DQLORA_CUDA=OFF >/dev/null
cmake --build "$build" --target fuzz_targets
rm -f "$build"/*.profraw
for corpus in tests/fuzz/corpus/*; do
  target=$(basename "$corpus")
  QLORA_FUZZ_TARGET=$target LLVM_PROFILE_FILE="$build/$target.profraw" "$build/tests/fuzz_targets" -runs=0 "$corpus" 2>/dev/null
done
llvm-profdata-14 merge -sparse "$build"/*.profraw -o "$build/all.profdata"

report() { # COMMAND SOURCE...
  llvm-cov-14 "$1" "$build/tests/fuzz_targets" -instr-profile="$build/all.profdata" "${@:2}"
}
status=0
while read -r parser sources; do
  mapfile -t files < <(eval "ls $sources")  # patterns and lists in braces
  if [ "${1:-}" = "$parser" ]; then report show "${files[@]}"; fi
  [ $# -eq 0 ] || continue
  # Behind the name, total, missed and share of regions, of functions and of lines.
  read -r _ _ _ _ _ _ _ lines missed _ < <(report report "${files[@]}" | grep ^TOTAL)
  echo "$parser: $((lines - missed)) of $lines lines, $((100 * (lines - missed) / lines)) %"
  [ $((100 * missed)) -le $(((100 - least) * lines)) ] || status=1
done <<'END'
safetensors engine/io/{dtype,safetensors,safetensors_header}.cc
config engine/{io/json_file,io/utf8,model/config_reader,model/families,model/model_spec,model/rope_config}.cc
index engine/io/checkpoint_files.cc
tokenizer engine/text/[!c]*.cc
records engine/{data/chat_format_of,data/encode_record,data/jsonl,data/record,text/chat_format}.cc
job proto/job_*.cc proto/{memory_size,sweep_jobs}.cc engine/lora/{full_match,nearest_name,targets}.cc
manifest engine/io/manifest.cc
result_sums engine/checkpoint/result_sums.cc
adapter engine/io/adapter_{config,file}.cc
quantized engine/model/prequantized_reader.cc
control engine/comm/control_frame.cc
END
exit "$status"
