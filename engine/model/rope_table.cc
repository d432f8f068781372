#include "engine/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qlora::engine {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

double Llama3(const RopeSpec& rope, double inverse) {
  const double length = double(rope.original_max_positions);
  const double wavelength = kTwoPi / inverse;
  if (wavelength < length / rope.high_freq_factor) return inverse;
  if (wavelength > length / rope.low_freq_factor) return inverse / rope.factor;
  const double s =
      (length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - s) * inverse / rope.factor + s * inverse;
}

struct YarnRange {
  double low = 0.0, high = 0.0;
};

YarnRange FindYarnRange(const RopeSpec& rope) {
  const double dims = double(rope.rotary_dims);
  // The dimension whose pair turns `turns` times over the original context.
  const auto dimension = [&](double turns) {
    return dims * std::log(double(rope.original_max_positions) / (turns * kTwoPi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = dimension(rope.beta_fast);
  double high = dimension(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1.0);
  if (low == high) high += 0.001;  // as the reference does: a step instead of 0/0
  return {low, high};
}

}  // namespace

std::vector<double> RopeInverseFrequencies(const RopeSpec& rope) {
  const int64_t pairs = rope.rotary_dims / 2;
  std::vector<double> inverse(pairs);
  const YarnRange range =
      rope.scaling == RopeSpec::Scaling::kYarn ? FindYarnRange(rope) : YarnRange{};
  for (int64_t i = 0; i < pairs; ++i) {
    const double plain = std::pow(rope.theta, -2.0 * double(i) / double(rope.rotary_dims));
    switch (rope.scaling) {
      case RopeSpec::Scaling::kNone:
        inverse[i] = plain;
        break;
      case RopeSpec::Scaling::kLinear:
        inverse[i] = plain / rope.factor;
        break;
      case RopeSpec::Scaling::kLlama3:
        inverse[i] = Llama3(rope, plain);
        break;
      case RopeSpec::Scaling::kYarn: {
        const double ramp =
            std::clamp((double(i) - range.low) / (range.high - range.low), 0.0, 1.0);
        inverse[i] = plain * (1.0 - ramp) + plain / rope.factor * ramp;
        break;
      }
    }
  }
  return inverse;
}

void FillRopeTable(const RopeSpec& rope, int64_t positions, absl::Span<float> cos,
                   absl::Span<float> sin) {
  const std::vector<double> inverse = RopeInverseFrequencies(rope);
  size_t at = 0;
  for (int64_t p = 0; p < positions; ++p) {
    for (const double frequency : inverse) {
      const double angle = double(p) * frequency;
      cos[at] = static_cast<float>(std::cos(angle) * rope.attention_factor);
      sin[at] = static_cast<float>(std::sin(angle) * rope.attention_factor);
      ++at;
    }
  }
}

}  // namespace qlora::engine
