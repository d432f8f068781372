// A quantized tensor that owns its parts, for the tests of this folder. Every part has a sentinel
// behind its end.
#ifndef QLORA_TESTS_QUANT_QUANTIZED_TENSOR_H_
#define QLORA_TESTS_QUANT_QUANTIZED_TENSOR_H_

#include <cstdint>
#include <vector>

#include "quant/reference_quantizer.h"
#include "quant/spec.h"

namespace qlora::quant {

struct QuantizedTensor {
  static constexpr uint8_t kByteSentinel = 0xa5;
  static constexpr float kFloatSentinel = -12345.0f;

  QuantizedTensor(const QuantSpec& spec, int64_t n)
      : spec(spec),
        n(n),
        codes(spec.CodeBytes(n) + 1, kByteSentinel),
        absmax_f32((spec.double_quant ? 0 : spec.BlockCount(n)) + 1, kFloatSentinel),
        absmax_u8((spec.double_quant ? spec.BlockCount(n) : 0) + 1, kByteSentinel),
        nested_absmax(spec.GroupCount(n) + 1, kFloatSentinel) {}

  QuantizedView View() {
    return {.codes = codes.data(),
            .absmax_f32 = absmax_f32.data(),
            .absmax_u8 = absmax_u8.data(),
            .nested_absmax = nested_absmax.data(),
            .nested_offset = &offset};
  }
  absl::Status Quantize(const std::vector<float>& w) {
    return QuantizeReference(w.data(), n, spec, View());
  }
  std::vector<float> Dequantize() {
    std::vector<float> out(n + 1, kFloatSentinel);
    DequantizeReference(AsConst(spec, View()), n, out.data());
    sentinels_kept = sentinels_kept && out.back() == kFloatSentinel;
    out.pop_back();
    return out;
  }
  bool SentinelsKept() const {
    return sentinels_kept && codes.back() == kByteSentinel && absmax_u8.back() == kByteSentinel &&
           absmax_f32.back() == kFloatSentinel && nested_absmax.back() == kFloatSentinel;
  }

  QuantSpec spec;
  int64_t n;
  std::vector<uint8_t> codes;
  std::vector<float> absmax_f32;
  std::vector<uint8_t> absmax_u8;
  std::vector<float> nested_absmax;
  float offset = kFloatSentinel;
  bool sentinels_kept = true;
};

// Triangular noise in (-0.03125, 0.03125), exact in fp32; the same numbers as make_golden.py's
// `generated`, where block b is scaled by 1 + b % 5 and zeroed when zero_every divides b + 1.
inline std::vector<float> GeneratedWeights(int64_t n, uint32_t seed, int64_t block_size,
                                           int64_t zero_every) {
  std::vector<float> w(n);
  for (int64_t i = 0; i < n; ++i) {
    uint32_t x = static_cast<uint32_t>(i + 1) * 0x9E3779B9u + seed * 0x85EBCA6Bu;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    x ^= x >> 16;
    const int64_t block = i / block_size;
    int64_t noise = static_cast<int64_t>(x & 0xffffu) + (x >> 16) - 65535;
    noise *= 1 + block % 5;
    if (zero_every != 0 && (block + 1) % zero_every == 0) noise = 0;
    w[i] = static_cast<float>(noise) * 0x1p-22f;
  }
  return w;
}

}  // namespace qlora::quant

#endif  // QLORA_TESTS_QUANT_QUANTIZED_TENSOR_H_
