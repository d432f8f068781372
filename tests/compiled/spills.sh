#!/usr/bin/env bash
# The matmul and attention kernels keep their sums in registers: compiles them for two architectures and
# reads the assembler's report. A spill fails.
#   spills.sh NVCC SOURCE_DIR INCLUDE_DIR...
set -euo pipefail
nvcc=$1 source=$2
shift 2
includes=()
for folder in "$@"; do includes+=("-I$folder"); done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
status=0
for file in product_bf16 attention_forward attention_backward linear_skinny; do
  for arch in sm_80 sm_90a; do
    "$nvcc" -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -diag-suppress=2810 -arch=$arch -cubin \
      -Xptxas -v "${includes[@]}" "$source/kernels/cuda/$file.cu" -o "$out/$file.cubin" 2>"$out/report"
    kernels=$(grep -c 'Compiling entry function' "$out/report" || true)
    spilled=$(grep 'bytes spill stores' "$out/report" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)
    registers=$(grep -oE 'Used [0-9]+ registers' "$out/report" | sort -t' ' -k2 -n | tail -1)
    echo "$file $arch: $kernels kernels, $spilled that spill, $registers at most"
    if [ "$kernels" -eq 0 ] || [ "$spilled" -ne 0 ]; then
      grep -B1 -E 'bytes spill stores' "$out/report" | grep -v ' 0 bytes spill stores, 0 bytes' || true
      status=1
    fi
  done
done
exit $status
