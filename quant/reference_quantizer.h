// The scalar reference quantizer: the definition of quantize and dequantize that every backend must
// equal bit for bit.
//
// Quantize, per block:
//   absmax = max |v| over the elements present
//   code_i = Encode(type, v_i * (1 / absmax))     reciprocal first, then one rounded fp32 multiply
// Element 2i goes to the high nibble of byte i, element 2i+1 to the low one; the spare nibble of an
// odd n holds the code that one more element, 0, in the last block would get.
// A block whose absmax is zero or subnormal counts as all zero: absmax 0 is stored and every code
// is 0. (bitsandbytes' CUDA kernels flush subnormals; 0 * inf = NaN then fails every comparison.)
// For NF4 code 0 is -1, which reads as -0 with fp32 scales. With double quantization the scale of
// such a block reads as a small number, seldom 0, and its weights as that number's negative: a
// property of the format, see NF4.md.
//
// Double quantization of the block scales, per group of 256 blocks:
//   offset        = fp32(sum of absmax over all blocks / number of blocks)
//   d_b           = absmax_b - offset
//   nested_absmax = max |d_b| over the group
//   code_b        = EncodeDynamic(d_b * (1 / nested_absmax))
// The sum is taken in fp64, within chunks of 4096 blocks in index order, then over the chunk sums
// in order, and divided in fp64: an order that threads can share. (bitsandbytes leaves the order to
// torch: its offset lies 0 to 1.3 ulp from the exact mean.) A group whose nested_absmax is zero or
// subnormal stores 0 and codes 0: its scales read as the offset.
//
// Dequantize:
//   a = map[code_b] * nested_absmax, rounded; a = a + offset, rounded. Never a fused multiply-add:
//       that moves a by an ulp. Without double quantization a is the stored absmax.
//   w = CodeValues[code_i] * a, in fp32. Callers round w to bf16 or fp16 with float_formats.h.
//
// All arithmetic needs the default floating-point environment: round to nearest, subnormals kept.
#ifndef QLORA_QUANT_REFERENCE_QUANTIZER_H_
#define QLORA_QUANT_REFERENCE_QUANTIZER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "quant/spec.h"

namespace qlora::quant {

// Quantizes w[0, n) into `out`; for n = 0 writes nothing but the offset, 0. bf16 and fp16 weights
// are widened by the caller. Reads w up to three times, allocates nothing.
// InvalidArgument, before anything is written: spec not valid, n negative, a pointer that the spec
// needs is null, or an element that is NaN or infinite (the first one, with its index).
absl::Status QuantizeReference(const float* w, int64_t n, const QuantSpec& spec,
                               const QuantizedView& out);

// Reads n elements of a valid view into out[0, n), fp32.
void DequantizeReference(const ConstQuantizedView& view, int64_t n, float* out);

// The fp32 scale of one block, 0 <= block < BlockCount: as stored, or decoded (double
// quantization).
float BlockScale(const ConstQuantizedView& view, int64_t block);

// The code, 0..15, of element i.
inline uint8_t CodeAt(const uint8_t* codes, int64_t i) {
  return static_cast<uint8_t>(i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 0x0f);
}

}  // namespace qlora::quant

#endif  // QLORA_QUANT_REFERENCE_QUANTIZER_H_
