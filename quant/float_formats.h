// 16-bit float formats: fp32 to and from bf16 and IEEE binary16 (fp16), on raw bit patterns.
//
// Narrowing rounds to nearest, ties to even. Overflow gives infinity, subnormals are kept in both
// directions, the sign of zero is kept. A NaN stays a NaN of the same sign with the upper bits of
// its payload, made quiet.
//
// These functions are the meaning of "rounded to bf16" everywhere in the project. Trap for vector
// code: vcvtneps2bf16 flushes fp32 subnormals to zero whatever MXCSR says, so it differs from
// Bf16FromF32 below 2^-126.
#ifndef QLORA_QUANT_FLOAT_FORMATS_H_
#define QLORA_QUANT_FLOAT_FORMATS_H_

#include <bit>
#include <cstdint>

namespace qlora::quant {

constexpr uint16_t Bf16FromF32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  }
  // A carry out of the mantissa raises the exponent; past the largest finite value: infinity.
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float F32FromBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

constexpr uint16_t F16FromF32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  // 65520 lies midway between 65504, the largest finite value with an odd mantissa, and 2^16.
  if (magnitude >= std::bit_cast<uint32_t>(65520.0f)) {
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (magnitude >= std::bit_cast<uint32_t>(0x1p-14f)) {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
  }
  if (magnitude < std::bit_cast<uint32_t>(0x1p-25f)) {
    return static_cast<uint16_t>(sign);
  }
  // Subnormal result, in units of 2^-24. The fp32 value is mantissa * 2^(exponent field - 150), so
  // the shift is 14 to 24.
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t shift = 126u - (magnitude >> 23);
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rest = mantissa & ((1u << shift) - 1u);
  uint32_t units = mantissa >> shift;
  if (rest > half || (rest == half && (units & 1u) != 0)) ++units;
  return static_cast<uint16_t>(sign | units);
}

constexpr float F32FromF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

}  // namespace qlora::quant

#endif  // QLORA_QUANT_FLOAT_FORMATS_H_
