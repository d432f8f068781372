#!/usr/bin/env bash
# What the assembler made of the kernels that decode 4-bit weights or sum matrices, for two architectures: no
# spills, no local memory in the decoders, and not more instructions than a budget.
#   kernels.sh NVCC SOURCE_DIR INCLUDE_DIR...
set -euo pipefail
nvcc=$1 source=$2
shift 2
includes=()
for folder in "$@"; do includes+=("-I$folder"); done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
status=0

# File; bytes of local memory that a kernel may have; instructions of its largest kernel (a tenth above what
# nvcc 13.0 makes of it: a loop that is unrolled once more, or a path that is no longer folded, shows).
while read -r file local budget; do
  for arch in sm_80 sm_90a; do
    "$nvcc" -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -diag-suppress=2810 -arch=$arch -cubin \
      -Xptxas -v "${includes[@]}" "$source/kernels/cuda/$file.cu" -o "$out/$file.cubin" 2>"$out/report"
    kernels=$(grep -c 'Compiling entry function' "$out/report" || true)
    spilled=$(grep 'bytes spill stores' "$out/report" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)
    stack=$(grep -oE '[0-9]+ bytes stack frame' "$out/report" | cut -d' ' -f1 | sort -n | tail -1)
    registers=$(grep -oE 'Used [0-9]+ registers' "$out/report" | cut -d' ' -f2 | sort -n | tail -1)
    # A kernel's code is a section of its own, 16 bytes an instruction.
    largest=0
    for size in $(readelf -SW "$out/$file.cubin" 2>/dev/null | grep -oE ' \.text\..*PROGBITS +[0-9a-f]+ [0-9a-f]+ [0-9a-f]+' |
      awk '{print $NF}'); do
      instructions=$((16#$size / 16))
      if [ $instructions -gt $largest ]; then largest=$instructions; fi
    done
    echo "$file $arch: $kernels kernels, $spilled that spill, $stack bytes of local memory, $registers registers," \
      "$largest instructions (budget $budget)"
    if [ "$kernels" -eq 0 ] || [ "$spilled" -ne 0 ] || [ "$stack" -gt "$local" ] || [ "$largest" -eq 0 ] ||
      [ "$largest" -gt "$budget" ]; then
      echo "  ^ not as it should be"
      status=1
    fi
  done
done <<END
product_bf16 16 15600
attention_forward 0 4500
attention_backward 0 3700
linear_skinny 0 2900
dequantize 0 530
linear_dequantized 0 1770
hopper_product 0 3880
END

# sm_90's own instructions are what that product is there for.
"$nvcc" -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -diag-suppress=2810 -arch=sm_90a -ptx "${includes[@]}" \
  "$source/kernels/cuda/hopper_product.cu" -o "$out/hopper.ptx"
for instruction in wgmma.mma_async cp.async.bulk.tensor setmaxnreg; do
  count=$(grep -c "$instruction" "$out/hopper.ptx" || true)
  echo "hopper_product sm_90a: $count $instruction"
  [ "$count" -gt 0 ] || status=1
done
exit $status
