// AdamW over one block, and the sum of squares. Included by simd_table.h only: see vec.h.

#ifndef QLORA_KERNELS_CPU_SIMD_UPDATE_H_
#define QLORA_KERNELS_CPU_SIMD_UPDATE_H_

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vec.h"
#include "kernels/dynamic_code.h"

namespace qlora::kernels::cpu {
namespace {

constexpr int64_t kAdamWBlock = 256;

inline void DecodeStates(const uint8_t* codes, const float* map, float absmax, int64_t n,
                         float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = map[codes[i]] * absmax;
}

// Encodes n ≤ 256 values; lanes behind them up to a multiple of 16 hold 0.
inline void EncodeStates(const float* x, int64_t n, const DynamicCode& code, uint8_t* codes,
                         float* absmax) {
  Vec largest = Set(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) largest = Max(Abs(Load(x + i)), largest);
  float lanes[kLanes];
  Store(lanes, largest);
  float max = 0.0f;
  for (float lane : lanes) max = lane > max ? lane : max;
  *absmax = max;
  // An all-zero block: 0 / 0 would be a NaN, and its code the map's most negative value.
  const Vec divisor = Set(max > 0.0f ? max : 1.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    Store(lanes, Load(x + i) / divisor);
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    for (int64_t lane = 0; lane < count; ++lane) {
      uint32_t bits;
      std::memcpy(&bits, lanes + lane, sizeof(bits));
      const uint8_t base = code.base[bits >> 16];
      codes[i + lane] = base + (lanes[lane] >= code.next[base] ? 1 : 0);
    }
  }
}

inline void AdamWOneBlock(const AdamWBlock& block) {
  alignas(64) float m_values[kAdamWBlock], v_values[kAdamWBlock];
  float* m = static_cast<float*>(block.m);
  float* v = static_cast<float*>(block.v);
  const bool codes = block.m_code != nullptr;
  if (codes) {
    m = m_values;
    v = v_values;
    std::memset(m_values, 0, sizeof(m_values));
    std::memset(v_values, 0, sizeof(v_values));
    DecodeStates(static_cast<const uint8_t*>(block.m), block.m_code->map, *block.m_absmax, block.n,
                 m);
    DecodeStates(static_cast<const uint8_t*>(block.v), block.v_code->map, *block.v_absmax, block.n,
                 v);
  }
  const Vec scale = Set(block.gradient_scale), keep = Set(block.keep), step = Set(block.step);
  const Vec beta1 = Set(block.beta1), rest1 = Set(block.rest1);
  const Vec beta2 = Set(block.beta2), rest2 = Set(block.rest2);
  const Vec root_correction2 = Set(block.root_correction2), epsilon = Set(block.epsilon);
  ForVectors(block.n, [&](int64_t i, auto n) QLORA_LAMBDA_INLINE {
    const Vec g = Load(block.gradient + i, n) * scale;
    const Vec new_m = beta1 * Load(m + i, n) + rest1 * g;
    const Vec new_v = beta2 * Load(v + i, n) + rest2 * (g * g);
    const Vec p = Load(block.parameter + i, n) * keep;
    const Vec new_p = p - step * (new_m / (Sqrt(new_v) / root_correction2 + epsilon));
    Store(m + i, new_m, n);
    Store(v + i, new_v, n);
    Store(block.parameter + i, new_p, n);
    if (block.compute != nullptr) Store(reinterpret_cast<Bf16*>(block.compute) + i, new_p, n);
  });
  if (codes) {
    EncodeStates(m, block.n, *block.m_code, static_cast<uint8_t*>(block.m), block.m_absmax);
    EncodeStates(v, block.n, *block.v_code, static_cast<uint8_t*>(block.v), block.v_absmax);
  }
}

// Sixteen fp64 sums, element i to sum i mod 16, which are then halved onto each other.
inline double SumOfSquares(const void* x, bool bf16, int64_t n, int64_t* nonfinite) {
  constexpr int kDoubles = kNativeLanes / 2;
  using NativeD = double __attribute__((vector_size(8 * kDoubles)));
  using HalfF = float __attribute__((vector_size(4 * kDoubles)));
  NativeD sums[kLanes / kDoubles] = {};
  IVec bad = SetI(0);
  const auto add = [&](Vec value) QLORA_LAMBDA_INLINE {
    const IVec is_bad = Bits(Abs(value)) > SetI(0x7f7fffff);
    bad = bad - is_bad;
    value = Select(is_bad, Set(0.0f), value);
    float lanes[kLanes];
    Store(lanes, value);
#pragma GCC unroll 8
    for (int part = 0; part < kLanes / kDoubles; ++part) {
      HalfF half;
      std::memcpy(&half, lanes + part * kDoubles, sizeof(half));
      const NativeD wide = __builtin_convertvector(half, NativeD);
      sums[part] += wide * wide;
    }
  };
  if (bf16) {
    ForVectors(n, [&](int64_t i, auto c)
                      QLORA_LAMBDA_INLINE { add(Load(static_cast<const Bf16*>(x) + i, c)); });
  } else {
    ForVectors(n, [&](int64_t i, auto c)
                      QLORA_LAMBDA_INLINE { add(Load(static_cast<const float*>(x) + i, c)); });
  }
  for (int part = 0; part < kParts; ++part) {
    for (int lane = 0; lane < kNativeLanes; ++lane) *nonfinite += bad.p[part][lane];
  }
  double lanes[kLanes];
  std::memcpy(lanes, sums, sizeof(lanes));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_UPDATE_H_
