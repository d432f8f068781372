#include "engine/drift/logit_score.h"

#include <algorithm>
#include <cmath>

namespace qlora::engine {

BaselineRow PrepareBaseline(absl::Span<float> logits, float softcap) {
  if (softcap > 0) {
    for (float& z : logits) z = softcap * std::tanh(z / softcap);
  }
  const auto largest = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float z : logits) sum += std::exp(double(z) - double(*largest));
  return {.log_sum = double(*largest) + std::log(sum),
          .likeliest = int32_t(largest - logits.begin())};
}

RowScore ScoreBaseline(absl::Span<const float> baseline, const BaselineRow& row, int32_t target) {
  return {.loss = row.log_sum - double(baseline[target]),
          .correct = row.likeliest == target,
          .agrees = true};
}

RowScore ScoreRow(absl::Span<const float> baseline, const BaselineRow& row,
                  absl::Span<float> logits, float softcap, int32_t target) {
  const BaselineRow own = PrepareBaseline(logits, softcap);
  double kl = 0;
  for (size_t v = 0; v < logits.size(); ++v) {
    const double log_p = double(baseline[v]) - row.log_sum;
    kl += std::exp(log_p) * (log_p - (double(logits[v]) - own.log_sum));
  }
  return {.loss = own.log_sum - double(logits[target]),
          .kl = std::max(kl, 0.0),
          .correct = own.likeliest == target,
          .agrees = own.likeliest == row.likeliest};
}

}  // namespace qlora::engine
