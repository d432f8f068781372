// 4-bit weights in kernels: block scales and codes, read from bitsandbytes' own bytes, which are
// what the CUDA backend packs into.

#ifndef QLORA_KERNELS_CUDA_DECODE_H_
#define QLORA_KERNELS_CUDA_DECODE_H_

#include <bit>
#include <cstdint>

#include "gpu/primitives.h"
#include "kernels/ops/linear.h"
#include "quant/codebook.h"

namespace qlora::kernels::cuda {

// A QuantizedTensor as a kernel's argument.
struct DecodeSource {
  const uint8_t* codes;
  const uint8_t* absmax_u8;  // with double quantization; else absmax_f32
  const float* absmax_f32;
  const float* nested_absmax;
  const float* offset;
  const float* map;  // [256]
  int log2_block;
  float values[16];  // of the codes
};

inline DecodeSource DecodeSourceOf(const QuantizedTensor& q) {
  DecodeSource source = {};
  source.codes = static_cast<const uint8_t*>(q.codes.data);
  if (q.spec.double_quant) {
    source.absmax_u8 = static_cast<const uint8_t*>(q.absmax.data);
  } else {
    source.absmax_f32 = static_cast<const float*>(q.absmax.data);
  }
  source.nested_absmax = static_cast<const float*>(q.nested_absmax.data);
  source.offset = static_cast<const float*>(q.offset.data);
  source.map = static_cast<const float*>(q.map.data);
  source.log2_block = std::countr_zero(unsigned(q.spec.block_size));
  for (int i = 0; i < 16; ++i) source.values[i] = quant::CodeValues(q.spec.type)[i];
  return source;
}

// The fp32 scale of a block: product, then sum, each rounded.
QLORA_DEVICE float BlockScale(const DecodeSource& s, int64_t block) {
  if (s.absmax_u8 == nullptr) return s.absmax_f32[block];
  const float scaled = s.map[s.absmax_u8[block]] * s.nested_absmax[block >> 8];
  return scaled + *s.offset;
}

// The 16 code values, once for each lane of a warp: lane l reads entry 32·code + l, so no two lanes
// ever meet in a bank.
inline constexpr int kValueTableFloats = 16 * 32;

// Called by all threads of the block; a barrier must follow. One warp writes: with an index that is
// known when it is compiled the values stay in the kernel's arguments, with any other they would be
// copied to local memory first.
QLORA_DEVICE void FillValueTable(const DecodeSource& s, gpu::Shared<float> table) {
  const int lane = gpu::ThreadX();
  if (lane >= 32) return;
  QLORA_UNROLL
  for (int code = 0; code < 16; ++code) table[code * 32 + lane] = s.values[code];
}
QLORA_DEVICE float ValueOf(gpu::Shared<float> table, uint32_t code) {
  return table[int(code << 5) + gpu::Lane()];
}

// Element i of the flattened tensor.
QLORA_DEVICE uint32_t CodeAt(const DecodeSource& s, int64_t i) {
  const uint32_t byte = s.codes[i >> 1];
  return (i & 1) == 0 ? byte >> 4 : byte & 15u;
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_DECODE_H_
