#include "quant/float_formats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace qlora::quant {
namespace {

static_assert(Bf16FromF32(1.0f) == 0x3f80 && F32FromBf16(0xc000) == -2.0f);
static_assert(F16FromF32(1.0f) == 0x3c00 && F32FromF16(0xc000) == -2.0f);

float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }
uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

// A small float format, described by its mantissa width and its largest and smallest normal
// exponents; the value is rounded by ldexp and nearbyint in double, a different road from the
// integer code under test.
struct Format {
  int mantissa_bits;
  int max_exponent;
  int min_exponent;

  double Round(float value) const {
    if (value == 0.0f || std::isinf(value)) return value;
    const int exponent = std::max(std::ilogb(static_cast<double>(value)), min_exponent);
    const double ulp = std::ldexp(1.0, exponent - mantissa_bits);
    const double rounded = std::nearbyint(value / ulp) * ulp;
    const double limit = std::ldexp(1.0, max_exponent + 1);
    return std::fabs(rounded) >= limit ? std::copysign(HUGE_VAL, rounded) : rounded;
  }
};
constexpr Format kBf16{.mantissa_bits = 7, .max_exponent = 127, .min_exponent = -126};
constexpr Format kF16{.mantissa_bits = 10, .max_exponent = 15, .min_exponent = -14};

void ExpectBothRounded(uint32_t bits) {
  const float value = FromBits(bits);
  if (std::isnan(value)) {
    const float bf16 = F32FromBf16(Bf16FromF32(value));
    const float f16 = F32FromF16(F16FromF32(value));
    ASSERT_TRUE(std::isnan(bf16) && std::isnan(f16)) << std::hex << bits;
    ASSERT_EQ(std::signbit(bf16), std::signbit(value)) << std::hex << bits;
    ASSERT_EQ(std::signbit(f16), std::signbit(value)) << std::hex << bits;
    ASSERT_TRUE((Bits(bf16) & 0x400000u) != 0 && (Bits(f16) & 0x400000u) != 0) << std::hex << bits;
    return;
  }
  ASSERT_EQ(Bits(F32FromBf16(Bf16FromF32(value))), Bits(static_cast<float>(kBf16.Round(value))))
      << "bf16 of " << std::hex << bits;
  ASSERT_EQ(Bits(F32FromF16(F16FromF32(value))), Bits(static_cast<float>(kF16.Round(value))))
      << "fp16 of " << std::hex << bits;
}

TEST(FloatFormats, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bool nan = (bits & 0x7fff) > 0x7f80;
    ASSERT_EQ(Bf16FromF32(F32FromBf16(static_cast<uint16_t>(bits))), nan ? bits | 0x40 : bits);
  }
}

TEST(FloatFormats, EveryF16SurvivesTheRoundTripAndHasItsValue) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = F32FromF16(static_cast<uint16_t>(bits));
    const int exponent = (bits >> 10) & 31;
    const int mantissa = bits & 1023;
    const bool nan = exponent == 31 && mantissa != 0;
    ASSERT_EQ(F16FromF32(value), nan ? bits | 0x200 : bits);
    if (exponent == 31) {
      ASSERT_EQ(nan, std::isnan(value));
      ASSERT_EQ(!nan, std::isinf(value));
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(std::fabs(value), magnitude);
    ASSERT_EQ(std::signbit(value), bits >= 0x8000);
  }
}

// Every sign and exponent, with the mantissas at which rounding changes: ties for both formats and
// their neighbours, the all-ones mantissa that carries into the exponent.
TEST(FloatFormats, NarrowingRoundsToNearestEvenAtEveryExponent) {
  int cases = 0;
  for (uint32_t top = 0; top < 512; ++top) {
    for (uint32_t high = 0; high < 1024; high += 31) {
      for (uint32_t low : {0x0u, 0x1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
        ExpectBothRounded(top << 23 | high << 13 | low);
        if (HasFatalFailure()) return;
        ++cases;
      }
    }
    for (uint32_t mantissa : {0x7fffu, 0x8000u, 0x8001u, 0x17fffu, 0x18000u, 0x18001u, 0x7f7fffu,
                              0x7f8000u, 0x7fefffu, 0x7ff000u, 0x7fffffu, 0x400000u}) {
      ExpectBothRounded(top << 23 | mantissa);
      if (HasFatalFailure()) return;
      ++cases;
    }
  }
  EXPECT_EQ(cases, 512 * (34 * 6 + 12));
}

TEST(FloatFormats, NarrowingRoundsToNearestEvenOnMixedBits) {
  uint32_t bits = 1;
  for (int i = 0; i < 2000000; ++i) {
    bits = bits * 1664525u + 1013904223u;
    ExpectBothRounded(bits ^ bits >> 16);
    if (HasFatalFailure()) return;
  }
}

// In the subnormal range of fp16 ties lie at different mantissa bits for each exponent.
TEST(FloatFormats, F16SubnormalTiesGoToEven) {
  for (int units = 0; units < 1024; ++units) {
    const float tie = std::ldexp(units + 0.5f, -24);
    const uint16_t even = static_cast<uint16_t>(units % 2 == 0 ? units : units + 1);
    EXPECT_EQ(F16FromF32(tie), even);
    EXPECT_EQ(F16FromF32(-tie), 0x8000 | even);
    EXPECT_EQ(F16FromF32(std::nextafter(tie, 0.0f)), units);
    EXPECT_EQ(F16FromF32(std::nextafter(tie, 1.0f)), units + 1);
  }
}

TEST(FloatFormats, Edges) {
  EXPECT_EQ(Bf16FromF32(-0.0f), 0x8000);
  EXPECT_EQ(F16FromF32(-0.0f), 0x8000);
  EXPECT_EQ(Bf16FromF32(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(Bf16FromF32(FromBits(0x7f7f7fff)), 0x7f7f);
  EXPECT_EQ(Bf16FromF32(FromBits(0x7f7f8000)), 0x7f80);
  EXPECT_EQ(F16FromF32(65519.996f), 0x7bff);
  EXPECT_EQ(F16FromF32(65520.0f), 0x7c00);
  EXPECT_EQ(F16FromF32(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(Bf16FromF32(FromBits(0x00008000)), 0x0000);
  EXPECT_EQ(Bf16FromF32(FromBits(0x00008001)), 0x0001);
  // A NaN whose payload lies only in the bits cut off must not become infinity.
  EXPECT_EQ(Bf16FromF32(FromBits(0x7f800001)), 0x7fc0);
  EXPECT_EQ(F16FromF32(FromBits(0xff800001)), 0xfe00);
  EXPECT_EQ(Bits(F32FromF16(0x7d00)), 0x7fe00000u);
}

}  // namespace
}  // namespace qlora::quant
