#!/usr/bin/env bash
# What the assembler made of the kernels that decode 4-bit weights or sum matrices, for two architectures: no
# spills, no local memory in the decoders, not more instructions than a budget, sm_90's own instructions where they
# are meant to be.
#   kernels.sh NVCC SOURCE_DIR INCLUDE_DIR...
set -euo pipefail
nvcc=$1 source=$2
shift 2
includes=()
for folder in "$@"; do includes+=("-I$folder"); done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
status=0

wrong() {
  echo "  ^ not as it should be"
  status=1
}

# Offset and bytes of each kernel's code in a cubin, a section of its own with 16 bytes an instruction.
codes_of() {
  readelf -SW "$1" 2>/dev/null | sed -nE 's/.* \.text\..*PROGBITS +[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+).*/\1 \2/p' |
    while read -r offset bytes; do echo $((16#$offset)) $((16#$bytes)); done
}

# File; bytes of local memory that a kernel may have; instructions of its largest kernel (a tenth above what
# nvcc 13.0 makes of it: a loop that is unrolled once more, or a path that is no longer folded, shows).
while read -r file local budget; do
  for arch in sm_80 sm_90a; do
    "$nvcc" -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -diag-suppress=2810 -arch=$arch -cubin \
      -Xptxas -v "${includes[@]}" "$source/kernels/cuda/$file.cu" -o "$out/$file.$arch" 2>"$out/report"
    kernels=$(grep -c 'Compiling entry function' "$out/report" || true)
    spilled=$(grep 'bytes spill stores' "$out/report" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)
    stack=$(grep -oE '[0-9]+ bytes stack frame' "$out/report" | cut -d' ' -f1 | sort -n | tail -1)
    registers=$(grep -oE 'Used [0-9]+ registers' "$out/report" | cut -d' ' -f2 | sort -n | tail -1)
    largest=$(($(codes_of "$out/$file.$arch" | cut -d' ' -f2 | sort -n | tail -1) / 16))
    echo "$file $arch: $kernels kernels, $spilled that spill, $stack bytes of local memory, $registers registers," \
      "$largest instructions (budget $budget)"
    if [ "$kernels" -eq 0 ] || [ "$spilled" -ne 0 ] || [ "$stack" -gt "$local" ] || [ "$largest" -eq 0 ] ||
      [ "$largest" -gt "$budget" ]; then
      wrong
    fi
  done
done <<END
product_bf16 0 15600
attention_forward 0 4500
attention_backward 0 3700
linear_skinny 0 2900
dequantize 0 530
linear_dequantized 0 900
rms_norm_products 0 3500
hopper_product 0 3880
END

is_within() { # COUNT LOOP FEWEST BUDGET; what is no number is not
  [ "$1" -ge "$3" ] && { [ "$4" -eq 0 ] || { [ "$2" -gt 0 ] && [ "$2" -le "$4" ]; }; }
}

# Of every kernel of a file: instruction, its opcodes, how many the kernel has at least, how many of them make a
# loop the one that is meant, and how many instructions that loop may have (0: it need not be in one). The opcodes
# are those of nvcc 13.0's code for sm_90a, held against the names that nvdisasm 13.5 gives them (`nvdisasm -hex -c`;
# on PyPI, nvidia-cuda-nvdisasm): none of them is any other instruction's.
while read -r file arch name opcodes fewest in_loop budget; do
  echo "$file $arch: $name in each kernel, at least $fewest; instructions of the loop with $in_loop of them (budget $budget):"
  kernels=0
  while read -r offset bytes; do
    kernels=$((kernels + 1))
    read -r count loop <<<"$(od -An -v -t x8 -w16 -j "$offset" -N "$bytes" "$out/$file.$arch" |
      awk -v opcodes="$opcodes" -v least="$in_loop" -f "$(dirname "$0")/shortest_loop.awk")"
    echo "  $count, $loop"
    if ! is_within "$count" "$loop" "$fewest" "$budget"; then wrong; fi
  done < <(codes_of "$out/$file.$arch")
  [ "$kernels" -gt 0 ] || wrong
done <<END
hopper_product sm_90a HGMMA 9f0 8 4 97
hopper_product sm_90a PRMT 216|816 104 104 305
hopper_product sm_90a UTMALDG 5b4 3 1 0
hopper_product sm_90a USETMAXREG 9c8 2 1 0
END
exit $status
