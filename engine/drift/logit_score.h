// How one row of logits predicts, and how far it is from another's prediction.
//
//   log p_v = z_v − log Σ_u exp(z_u), with z = softcap · tanh(z / softcap) where softcap > 0
//   loss    = −log p_target
//   KL(p‖q) = Σ_v p_v · (log p_v − log q_v)
// Logits are fp32; exponentials and sums are fp64, in index order. KL is never negative: what
// rounding leaves below zero (1e-15, say) counts as 0. Of equal logits it is 0.

#ifndef QLORA_ENGINE_DRIFT_LOGIT_SCORE_H_
#define QLORA_ENGINE_DRIFT_LOGIT_SCORE_H_

#include <cstdint>

#include "absl/types/span.h"

namespace qlora::engine {

struct RowScore {
  double loss = 0;
  double kl = 0;         // KL(baseline ‖ this)
  bool correct = false;  // the target is the most likely token; of equals the lowest
  bool agrees = false;   // the most likely token is the baseline's
};

// A row of the baseline, prepared for comparisons.
struct BaselineRow {
  double log_sum = 0;  // log Σ exp(z)
  int32_t likeliest = 0;
};
// Applies the softcap to `logits` in place.
BaselineRow PrepareBaseline(absl::Span<float> logits, float softcap);
RowScore ScoreBaseline(absl::Span<const float> baseline, const BaselineRow& row, int32_t target);
// `logits` as they come; the softcap is applied in place.
RowScore ScoreRow(absl::Span<const float> baseline, const BaselineRow& row,
                  absl::Span<float> logits, float softcap, int32_t target);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_LOGIT_SCORE_H_
