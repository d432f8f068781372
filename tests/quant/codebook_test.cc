#include "quant/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace qlora::quant {
namespace {

constexpr std::array kAllTypes = {QuantType::kNf4, QuantType::kFp4E2M1, QuantType::kFp4E3M0,
                                  QuantType::kInt4};
constexpr float kInf = std::numeric_limits<float>::infinity();

float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }
uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

TEST(Codebook, Nf4ValuesAreTheFormats) {
  constexpr std::array<uint32_t, 16> kBits = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0,
                                              0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
                                              0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                              0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
  for (int i = 0; i < 16; ++i) EXPECT_EQ(Bits(CodeValues(QuantType::kNf4)[i]), kBits[i]) << i;
  // The decimal constants of the published tables are the same numbers.
  EXPECT_EQ(CodeValues(QuantType::kNf4)[1], -0.6961928009986877f);
  EXPECT_EQ(CodeValues(QuantType::kNf4)[14], 0.7229568362236023f);
}

TEST(Codebook, Fp4ValuesAreTheFormats) {
  constexpr std::array<uint32_t, 8> kBits = {0x00000000, 0x3baaaaab, 0x3f2aaaab, 0x3f800000,
                                             0x3eaaaaab, 0x3f000000, 0x3e2aaaab, 0x3e800000};
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(Bits(CodeValues(QuantType::kFp4E2M1)[i]), kBits[i]) << i;
    EXPECT_EQ(Bits(CodeValues(QuantType::kFp4E2M1)[i + 8]), kBits[i] | 0x80000000u) << i;
  }
}

TEST(Codebook, E3M0AndInt4Values) {
  const auto& e3m0 = CodeValues(QuantType::kFp4E3M0);
  EXPECT_EQ(Bits(e3m0[0]), 0u);
  EXPECT_EQ(Bits(e3m0[8]), 0x80000000u);
  const auto& int4 = CodeValues(QuantType::kInt4);
  EXPECT_EQ(Bits(int4[0]), 0u);
  for (int k = 1; k < 8; ++k) {
    EXPECT_EQ(e3m0[k], std::ldexp(1.0f, k - 7));
    EXPECT_EQ(e3m0[k + 8], -std::ldexp(1.0f, k - 7));
    EXPECT_EQ(int4[k], static_cast<float>(k / 7.0));
    EXPECT_EQ(int4[16 - k], static_cast<float>(-k / 7.0));
  }
  EXPECT_EQ(int4[8], -1.0f);
}

TEST(Codebook, Nf4TiesGoToTheLowerCode) {
  constexpr std::array<uint32_t, 15> kThresholds = {0xbf591cd8, 0xbf1c5270, 0xbeeb8480, 0xbeadea76,
                                                    0xbe703cec, 0xbe0d38bc, 0xbd3a7871, 0x3d22faff,
                                                    0x3df64862, 0x3e5067e0, 0x3e9582d4, 0x3ec753f9,
                                                    0x3f006d04, 0x3f248daf, 0x3f5c89da};
  for (int i = 0; i < 15; ++i) {
    const float t = FromBits(kThresholds[i]);
    EXPECT_EQ(Encode(QuantType::kNf4, t), i);
    EXPECT_EQ(Encode(QuantType::kNf4, std::nextafter(t, -kInf)), i);
    EXPECT_EQ(Encode(QuantType::kNf4, std::nextafter(t, kInf)), i + 1);
  }
  EXPECT_EQ(Encode(QuantType::kNf4, 0.0f), 7);
  EXPECT_EQ(Encode(QuantType::kNf4, -0.0f), 7);
}

TEST(Codebook, Fp4TiesGoToTheSmallerMagnitude) {
  constexpr std::array<uint32_t, 7> kThresholds = {0x3b2aaab9, 0x3db00000, 0x3e555555, 0x3e955555,
                                                   0x3ed55556, 0x3f155550, 0x3f555555};
  constexpr std::array<int, 8> kCodes = {0, 1, 6, 7, 4, 5, 2, 3};
  for (int i = 0; i < 7; ++i) {
    const float t = FromBits(kThresholds[i]);
    EXPECT_EQ(Encode(QuantType::kFp4E2M1, t), kCodes[i]);
    EXPECT_EQ(Encode(QuantType::kFp4E2M1, std::nextafter(t, kInf)), kCodes[i + 1]);
    EXPECT_EQ(Encode(QuantType::kFp4E2M1, -t), kCodes[i] + 8);
    EXPECT_EQ(Encode(QuantType::kFp4E2M1, -std::nextafter(t, kInf)), kCodes[i + 1] + 8);
  }
  // A zero of either sign is code 0, a negative number that rounds to zero is code 8.
  EXPECT_EQ(Encode(QuantType::kFp4E2M1, -0.0f), 0);
  EXPECT_EQ(Encode(QuantType::kFp4E2M1, -1e-30f), 8);
}

TEST(Codebook, OwnTypesTiesGoToTheSmallerMagnitude) {
  for (int k = 0; k < 7; ++k) {
    const float e3m0 = k == 0 ? 0x1p-7f : 3.0f * std::ldexp(1.0f, k - 8);
    EXPECT_EQ(Encode(QuantType::kFp4E3M0, e3m0), k);
    EXPECT_EQ(Encode(QuantType::kFp4E3M0, std::nextafter(e3m0, kInf)), k + 1);
    EXPECT_EQ(Encode(QuantType::kFp4E3M0, -e3m0), k + 8);
    EXPECT_EQ(Encode(QuantType::kFp4E3M0, std::nextafter(-e3m0, -kInf)), k + 9);
    const float int4 = static_cast<float>((k + 0.5) / 7.0);
    EXPECT_EQ(Encode(QuantType::kInt4, int4), k);
    EXPECT_EQ(Encode(QuantType::kInt4, std::nextafter(int4, kInf)), k + 1);
    EXPECT_EQ(Encode(QuantType::kInt4, -int4), (16 - k) % 16);
    EXPECT_EQ(Encode(QuantType::kInt4, std::nextafter(-int4, -kInf)), 15 - k);
  }
}

TEST(Codebook, EveryCodeWrittenReadsBackAsItself) {
  for (QuantType type : kAllTypes) {
    for (int code = 0; code < 16; ++code) {
      const float value = CodeValues(type)[code];
      int expected = code;
      if (type == QuantType::kInt4 && code == 8) expected = 9;  // 8 is never written
      if (value == 0.0f && std::signbit(value)) expected = 0;   // -0 is not below 0
      EXPECT_EQ(Encode(type, value), expected) << QuantTypeName(type) << " " << code;
    }
  }
}

TEST(Codebook, BeyondTheRangeAndNan) {
  for (QuantType type : kAllTypes) {
    for (float far : {1.0000001f, 2.0f, 1e30f, kInf}) {
      EXPECT_EQ(CodeValues(type)[Encode(type, far)], 1.0f) << QuantTypeName(type);
      EXPECT_EQ(CodeValues(type)[Encode(type, -far)], -1.0f) << QuantTypeName(type);
    }
    EXPECT_EQ(Encode(type, std::numeric_limits<float>::quiet_NaN()), 0) << QuantTypeName(type);
    EXPECT_EQ(Encode(type, -std::numeric_limits<float>::quiet_NaN()), 0) << QuantTypeName(type);
  }
}

// The code is the nearest value, by brute force in double. E2M1's decimal thresholds may miss by
// 4e-7.
TEST(Codebook, EncodeIsNearest) {
  for (QuantType type : kAllTypes) {
    const double slack = type == QuantType::kFp4E2M1 ? 8e-7 : 2.4e-7;
    for (int i = -100000; i <= 100000; ++i) {
      const float x = static_cast<float>(i) * 1.00001e-5f;
      double nearest = kInf;
      for (float value : CodeValues(type)) {
        nearest = std::min(nearest, std::fabs(static_cast<double>(x) - value));
      }
      const double got = std::fabs(static_cast<double>(x) - CodeValues(type)[Encode(type, x)]);
      ASSERT_LE(got, nearest + slack) << QuantTypeName(type) << " x = " << x;
    }
  }
}

// A backend that counts thresholds by the published rule gets the same codes.
TEST(Codebook, RuleIsWellFormed) {
  for (QuantType type : kAllTypes) {
    const EncodeRule& rule = RuleOf(type);
    EXPECT_EQ(rule.count, type == QuantType::kNf4 ? 15 : 7);
    for (int i = 0; i < 15; ++i) {
      if (i >= rule.count) {
        EXPECT_EQ(rule.thresholds[i], kInf);
      } else if (i > 0) {
        EXPECT_LT(rule.thresholds[i - 1], rule.thresholds[i]);
      }
    }
    for (int rank = 0; rank <= rule.count; ++rank) {
      const float positive = CodeValues(type)[rule.positive[rank]];
      const float negative = CodeValues(type)[rule.negative[rank]];
      EXPECT_EQ(positive, rule.on_magnitude ? -negative : negative);
      if (rank > 0) {
        EXPECT_LT(CodeValues(type)[rule.positive[rank - 1]], positive);
      }
    }
  }
}

TEST(Codebook, Names) {
  EXPECT_EQ(QuantTypeName(QuantType::kNf4), "nf4");
  EXPECT_EQ(QuantTypeName(QuantType::kFp4E2M1), "fp4");
  EXPECT_EQ(QuantTypeName(QuantType::kFp4E3M0), "fp4_e3m0");
  EXPECT_EQ(QuantTypeName(QuantType::kInt4), "int4");
}

}  // namespace
}  // namespace qlora::quant
