#include "quant/codebook.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/strings/string_view.h"

namespace qlora::quant {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

constexpr std::array<float, 16> FromBits(const std::array<uint32_t, 16>& bits) {
  std::array<float, 16> values{};
  for (int i = 0; i < 16; ++i) values[i] = std::bit_cast<float>(bits[i]);
  return values;
}

// Codes 8 .. 15 are the negatives of 0 .. 7, with a zero that keeps its sign.
constexpr std::array<float, 16> WithSignBit(const std::array<float, 8>& magnitudes) {
  std::array<float, 16> values{};
  for (int i = 0; i < 8; ++i) {
    values[i] = magnitudes[i];
    values[i + 8] = -magnitudes[i];
  }
  return values;
}

constexpr std::array<float, 16> kNf4Values =
    FromBits({0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871,
              0x00000000, 0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab,
              0x3f3913b3, 0x3f800000});

constexpr std::array<float, 16> kE2M1Values =
    WithSignBit({0.0f, 0.0052083335f, 2.0f / 3, 1.0f, 1.0f / 3, 0.5f, 1.0f / 6, 0.25f});

constexpr std::array<float, 16> kE3M0Values =
    WithSignBit({0.0f, 0x1p-6f, 0x1p-5f, 0x1p-4f, 0x1p-3f, 0x1p-2f, 0x1p-1f, 1.0f});

constexpr std::array<float, 16> MakeInt4Values() {
  std::array<float, 16> values{};
  for (int k = 1; k <= 7; ++k) {
    values[k] = static_cast<float>(k) / 7.0f;
    values[16 - k] = -values[k];
  }
  values[8] = -1.0f;
  return values;
}
constexpr std::array<float, 16> kInt4Values = MakeInt4Values();

constexpr EncodeRule MakeNf4Rule() {
  EncodeRule rule{
      .on_magnitude = false, .count = 15, .thresholds = {}, .positive = {}, .negative = {}};
  for (int i = 0; i < 15; ++i) rule.thresholds[i] = (kNf4Values[i] + kNf4Values[i + 1]) / 2.0f;
  for (int i = 0; i < 16; ++i) rule.positive[i] = rule.negative[i] = static_cast<uint8_t>(i);
  return rule;
}

constexpr EncodeRule MakeMagnitudeRule(const std::array<float, 7>& thresholds,
                                       const std::array<uint8_t, 8>& positive,
                                       const std::array<uint8_t, 8>& negative) {
  EncodeRule rule{
      .on_magnitude = true, .count = 7, .thresholds = {}, .positive = {}, .negative = {}};
  rule.thresholds.fill(kInf);
  for (int i = 0; i < 7; ++i) rule.thresholds[i] = thresholds[i];
  for (int i = 0; i < 8; ++i) {
    rule.positive[i] = positive[i];
    rule.negative[i] = negative[i];
  }
  return rule;
}

constexpr EncodeRule kNf4Rule = MakeNf4Rule();

constexpr EncodeRule kE2M1Rule = MakeMagnitudeRule(
    {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f},
    {0, 1, 6, 7, 4, 5, 2, 3}, {8, 9, 14, 15, 12, 13, 10, 11});

constexpr EncodeRule kE3M0Rule =
    MakeMagnitudeRule({0x1p-7f, 0x1.8p-6f, 0x1.8p-5f, 0x1.8p-4f, 0x1.8p-3f, 0x1.8p-2f, 0x1.8p-1f},
                      {0, 1, 2, 3, 4, 5, 6, 7}, {8, 9, 10, 11, 12, 13, 14, 15});

constexpr EncodeRule kInt4Rule = MakeMagnitudeRule(
    {1.0f / 14, 3.0f / 14, 5.0f / 14, 7.0f / 14, 9.0f / 14, 11.0f / 14, 13.0f / 14},
    {0, 1, 2, 3, 4, 5, 6, 7}, {0, 15, 14, 13, 12, 11, 10, 9});

}  // namespace

const std::array<float, 16>& CodeValues(QuantType type) {
  switch (type) {
    case QuantType::kNf4:
      return kNf4Values;
    case QuantType::kFp4E2M1:
      return kE2M1Values;
    case QuantType::kFp4E3M0:
      return kE3M0Values;
    case QuantType::kInt4:
      break;
  }
  return kInt4Values;
}

const EncodeRule& RuleOf(QuantType type) {
  switch (type) {
    case QuantType::kNf4:
      return kNf4Rule;
    case QuantType::kFp4E2M1:
      return kE2M1Rule;
    case QuantType::kFp4E3M0:
      return kE3M0Rule;
    case QuantType::kInt4:
      break;
  }
  return kInt4Rule;
}

uint8_t Encode(QuantType type, float x) {
  const EncodeRule& rule = RuleOf(type);
  const float m = rule.on_magnitude ? std::fabs(x) : x;
  int rank = 0;
  for (int i = 0; i < rule.count; ++i) rank += m > rule.thresholds[i] ? 1 : 0;
  return x < 0.0f ? rule.negative[rank] : rule.positive[rank];
}

absl::string_view QuantTypeName(QuantType type) {
  switch (type) {
    case QuantType::kNf4:
      return "nf4";
    case QuantType::kFp4E2M1:
      return "fp4";
    case QuantType::kFp4E3M0:
      return "fp4_e3m0";
    case QuantType::kInt4:
      return "int4";
  }
  return "unknown";
}

}  // namespace qlora::quant
