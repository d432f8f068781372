// How a tensor is stored in 4 bits: the choice (QuantSpec), the sizes that follow, and views of the
// stored parts.
//
// A tensor of n elements, flattened row-major, is cut into blocks of `block_size` consecutive
// elements (blocks run across rows, the last may be short). Blocks are gathered in groups of 256
// for double quantization. Byte format: quant/NF4.md.
#ifndef QLORA_QUANT_SPEC_H_
#define QLORA_QUANT_SPEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "quant/codebook.h"

namespace qlora::quant {

struct QuantSpec {
  // Blocks that share one fp32 second-level scale; bitsandbytes' fused kernels refuse any other.
  static constexpr int kGroupSize = 256;
  static constexpr int kMinBlockSize = 32;
  static constexpr int kMaxBlockSize = 4096;
  // Blocks per partial sum of the mean absmax: part of the result, see reference_quantizer.h.
  static constexpr int kMeanChunkBlocks = 4096;

  QuantType type = QuantType::kNf4;
  int block_size = 64;       // elements; a power of two, 32 .. 4096
  bool double_quant = true;  // block scales stored as 8-bit dynamic codes instead of fp32

  // InvalidArgument, with what was found and what is allowed, when the type is none of the enum's
  // values or the block size is not legal.
  absl::Status Validate() const;

  // Sizes for n elements of a valid spec; no n overflows, a negative n counts as 0.
  // Bytes of packed codes: ceil(n / 2).
  constexpr int64_t CodeBytes(int64_t n) const { return n <= 0 ? 0 : n / 2 + n % 2; }
  // Number of blocks: ceil(n / block_size). One scale each: 4 bytes, or 1 with double quantization.
  constexpr int64_t BlockCount(int64_t n) const { return CeilDiv(n, block_size); }
  // Number of groups: ceil(BlockCount(n) / 256), of 4 bytes each; 0 without double quantization.
  constexpr int64_t GroupCount(int64_t n) const {
    return double_quant ? CeilDiv(BlockCount(n), kGroupSize) : 0;
  }

  friend constexpr bool operator==(const QuantSpec&, const QuantSpec&) = default;

 private:
  static constexpr int64_t CeilDiv(int64_t n, int64_t d) {
    return n <= 0 ? 0 : n / d + (n % d != 0 ? 1 : 0);
  }
};

// Where a quantizer writes a tensor. Borrowed memory, sized by QuantSpec for the tensor's n.
struct QuantizedView {
  uint8_t* codes = nullptr;           // [CodeBytes]
  float* absmax_f32 = nullptr;        // [BlockCount] without double quantization, else unused
  uint8_t* absmax_u8 = nullptr;       // [BlockCount] with double quantization, else unused
  float* nested_absmax = nullptr;     // [GroupCount] likewise
  float* nested_offset = nullptr;     // [1] likewise
  const float* nested_map = nullptr;  // [256] ascending, likewise; null means SignedDynamicMap()
};

// A stored tensor to read. Borrowed memory, as above. `nested_map` must be the checkpoint's own
// where it has one.
struct ConstQuantizedView {
  QuantSpec spec;
  const uint8_t* codes = nullptr;
  const float* absmax_f32 = nullptr;
  const uint8_t* absmax_u8 = nullptr;
  const float* nested_absmax = nullptr;
  const float* nested_offset = nullptr;
  const float* nested_map = nullptr;
};

inline ConstQuantizedView AsConst(const QuantSpec& spec, const QuantizedView& view) {
  return {.spec = spec,
          .codes = view.codes,
          .absmax_f32 = view.absmax_f32,
          .absmax_u8 = view.absmax_u8,
          .nested_absmax = view.nested_absmax,
          .nested_offset = view.nested_offset,
          .nested_map = view.nested_map};
}

}  // namespace qlora::quant

#endif  // QLORA_QUANT_SPEC_H_
