// The cos and sin tables of rotary position embedding. With d = rotary_dims and i < d/2:
//   inv_i = theta^(−2i/d), changed by the scaling (below)
//   cos[p][i] = attention_factor · cos(p · inv_i),  sin likewise
//
// kLinear  inv / factor.
// kLlama3  wavelength w = 2π/inv; L = original_max_positions: inv where w < L/high_freq_factor,
//          inv/factor where w > L/low_freq_factor, between them (1 − s)·inv/factor + s·inv with
//          s = (L/w − low) / (high − low).
// kYarn    c(r) = d·ln(L / 2πr) / (2 ln theta); from lo = max(c(beta_fast), 0) to
//          hi = min(c(beta_slow), d − 1), rounded outwards to whole dimensions unless !truncate,
//          the ramp t_i = clamp((i − lo) / (hi − lo), 0, 1): inv·(1 − t) + inv/factor·t (Peng et
//          al., "YaRN", 2023).
//
// Rounding: everything in fp64; one rounding to fp32 at the end. Transformers computes inv and
// p · inv in fp32, which moves its angles by up to p · inv · 2⁻²³: the difference seen in a
// comparison grows with the position and is its error, not ours.
#ifndef QLORA_ENGINE_MODEL_ROPE_TABLE_H_
#define QLORA_ENGINE_MODEL_ROPE_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/model/model_spec.h"

namespace qlora::engine {

// Angle per position of each pair of dimensions, [rotary_dims / 2].
std::vector<double> RopeInverseFrequencies(const RopeSpec& rope);

// Fills cos and sin, each f32 [positions, rotary_dims / 2], row-major.
void FillRopeTable(const RopeSpec& rope, int64_t positions, absl::Span<float> cos,
                   absl::Span<float> sin);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_ROPE_TABLE_H_
