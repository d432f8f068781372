#!/usr/bin/env bash
# Feeds every parser with bytes made up by libFuzzer, under the address and undefined-behaviour sanitizers:
#   tools/fuzz.sh                   50,000 inputs each
#   tools/fuzz.sh 1000000 job index     a million each for two of them
# Starts from tests/fuzz/corpus/. What breaks a parser lies in build-fuzz/found/; so does the log of each target.
# SEED=n repeats a run; the seed is printed otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-50000}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls tests/fuzz/corpus)
seed=${SEED:-$((RANDOM * 32768 + RANDOM + 1))}
./tools/install_packages.sh clang-14 libclang-rt-14-dev libgtest-dev libgmock-dev
build=build-fuzz
cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++-14 -DCMAKE_BUILD_TYPE=None -DBUILD_TESTING=ON \
  -DCMAKE_CXX_FLAGS="-O1 -D_GLIBCXX_ASSERTIONS" -DQLORA_SANITIZE=fuzzer-no-link,address,undefined -DQLORA_CUDA=OFF >/dev/null
cmake --build "$build" --target fuzz_targets
mkdir -p "$build/found"
echo "$runs inputs each, seed $seed"
one() {
  target=$1
  new=$(mktemp -d)
  if ! QLORA_FUZZ_TARGET=$target "$build/tests/fuzz_targets" -runs="$runs" -seed="$seed" -max_len=4096 \
    -rss_limit_mb=512 -timeout=1 -print_final_stats=1 -artifact_prefix="$build/found/$target-" \
    "$new" "tests/fuzz/corpus/$target" >"$build/found/$target.log" 2>&1; then
    tail -n 60 "$build/found/$target.log"
    echo "$target: broken"
    return 1
  fi
  rm -rf "$build/found/$target"
  cp -r "$new" "$build/found/$target"
  rm -r "$new"
  grep -oE 'average_exec_per_sec: +[0-9]+' "$build/found/$target.log" | sed "s/^/$target: /"
}
export -f one
export build runs seed
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'one {}'
