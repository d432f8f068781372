// The 4-bit codes: what value each of the 16 codes stands for, which code a scaled weight gets.
//
// A weight v of a block is encoded as x = v * (1 / absmax), so x lies in [-1, 1] up to one
// rounding; nothing is clamped, values outside take the outermost code. Sources: NF4 and FP4 (E2M1)
// values and thresholds are bitsandbytes' constants, bit for bit (its CUDA kernels; equal to its
// Python tables). E3M0 and INT4 are this project's own.
#ifndef QLORA_QUANT_CODEBOOK_H_
#define QLORA_QUANT_CODEBOOK_H_

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace qlora::quant {

enum class QuantType : uint8_t {
  // NormalFloat: quantiles of a normal distribution; codes in value order, -1 .. 1, code 7 is 0.
  kNf4,
  // Sign in bit 3; magnitude codes 0..7 = 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 (not in value
  // order); 8 is -0.
  kFp4E2M1,
  // Sign in bit 3; magnitude code 0 is 0, code k is 2^(k-7), so 2^-6 .. 1; 8 is -0.
  kFp4E3M0,
  // Two's complement nibble over 7: code c is c/7 for 0..7 and (c-16)/7 for 9..15. Code 8 is never
  // written and reads as -1.
  kInt4,
};

// Value of each code, fp32, index = code. Lives for ever.
const std::array<float, 16>& CodeValues(QuantType type);

// How a code is chosen. With m = |x| when `on_magnitude`, else m = x:
//   rank = number of thresholds t among the first `count` with m > t    (strict: ties go down)
//   code = x < 0 ? negative[rank] : positive[rank]
// so that a NaN, for which every comparison is false, gets code 0, as in bitsandbytes' CUDA code.
struct EncodeRule {
  bool on_magnitude;
  int count;
  std::array<float, 15> thresholds;  // ascending; unused entries are +infinity
  std::array<uint8_t, 16> positive;  // by rank, 0 beyond `count`
  std::array<uint8_t, 16> negative;  // equal to `positive` unless `on_magnitude`
};

// The rule of a type, for backends that vectorise it. Lives for ever. Thresholds:
//   NF4   fp32 midpoints (c[i] + c[i+1]) / 2
//   E2M1  decimal constants of bitsandbytes' CUDA tree; they miss the midpoints by up to 4e-7
//   E3M0  midpoints, exact in fp32
//   INT4  (k + 1/2) / 7 rounded to fp32
// On an exact tie NF4 takes the smaller value, the others the smaller magnitude.
const EncodeRule& RuleOf(QuantType type);

// The code, 0..15, of a scaled weight. Total: any float, NaN included (code 0).
uint8_t Encode(QuantType type, float x);

// "nf4", "fp4", "fp4_e3m0", "int4": the first two as bitsandbytes spells them in a checkpoint.
absl::string_view QuantTypeName(QuantType type);

}  // namespace qlora::quant

#endif  // QLORA_QUANT_CODEBOOK_H_
