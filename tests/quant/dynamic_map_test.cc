#include "quant/dynamic_map.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace qlora::quant {
namespace {

uint32_t Crc32(const std::array<float, 256>& map) {
  uint32_t crc = 0xffffffffu;
  for (float value : map) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    for (int byte = 0; byte < 4; ++byte) {
      crc ^= bits >> (8 * byte) & 0xffu;
      for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
    }
  }
  return ~crc;
}

TEST(DynamicMap, ChecksumsOfBothMaps) {
  EXPECT_EQ(Crc32(SignedDynamicMap()), 0x1b137aebu);
  EXPECT_EQ(Crc32(UnsignedDynamicMap()), 0xe871278fu);
}

TEST(DynamicMap, LandmarksAndOrder) {
  const auto& map = SignedDynamicMap();
  EXPECT_EQ(map[0], -0.992968738079071f);
  EXPECT_EQ(std::bit_cast<uint32_t>(map[127]), 0u);
  EXPECT_EQ(std::bit_cast<uint32_t>(map[128]), 0x3513a3b7u);  // 5.5e-7 and an ulp
  EXPECT_EQ(map[160], 0.01421875f);
  EXPECT_EQ(map[255], 1.0f);
  const auto& positive = UnsignedDynamicMap();
  EXPECT_EQ(positive[0], 0.0f);
  EXPECT_EQ(positive[255], 1.0f);
  for (int i = 1; i < 256; ++i) {
    EXPECT_LT(map[i - 1], map[i]);
    EXPECT_LT(positive[i - 1], positive[i]);
  }
}

TEST(DynamicMap, EveryEntryIsItsOwnCode) {
  for (const auto* map : {&SignedDynamicMap(), &UnsignedDynamicMap()}) {
    for (int i = 0; i < 256; ++i) EXPECT_EQ(EncodeDynamic(map->data(), (*map)[i]), i);
  }
}

void ExpectNearest(const std::array<float, 256>& map, float x) {
  int nearest = 0;
  for (int i = 1; i < 256; ++i) {
    const double best = std::fabs(static_cast<double>(x) - map[nearest]);
    if (std::fabs(static_cast<double>(x) - map[i]) < best) nearest = i;
  }
  const int code = EncodeDynamic(map.data(), x);
  if (code == nearest) return;
  // Beside a midpoint the rounded midpoint decides: then both are equally near up to an fp32 ulp.
  ASSERT_EQ(std::abs(code - nearest), 1) << x;
  const double midpoint = (static_cast<double>(map[code]) + map[nearest]) / 2;
  ASSERT_LE(std::fabs(x - midpoint), std::fabs(midpoint) * 1.2e-7) << x;
}

TEST(DynamicMap, CodeIsNearestOnAGrid) {
  for (const auto* map : {&SignedDynamicMap(), &UnsignedDynamicMap()}) {
    for (int i = -60000; i <= 60000; ++i) {
      ExpectNearest(*map, static_cast<float>(i) * 1.7e-5f);
      ExpectNearest(*map, static_cast<float>(i) * 1.1e-10f);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(DynamicMap, CodeChangesAtTheFp32Midpoints) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto* map : {&SignedDynamicMap(), &UnsignedDynamicMap()}) {
    for (int i = 0; i < 255; ++i) {
      const float midpoint = ((*map)[i] + (*map)[i + 1]) * 0.5f;
      EXPECT_EQ(EncodeDynamic(map->data(), std::nextafter(midpoint, -inf)), i);
      EXPECT_EQ(EncodeDynamic(map->data(), std::nextafter(midpoint, inf)), i + 1);
    }
  }
}

// Which side a tie takes follows from the search: it ends on an even index, all odd ones having
// been passed before the last step, and a tie keeps the entry on which it ended.
TEST(DynamicMap, TieKeepsThePivot) {
  const auto& map = SignedDynamicMap();
  for (int i = 0; i < 255; ++i) {
    const float midpoint = (map[i] + map[i + 1]) * 0.5f;
    EXPECT_EQ(EncodeDynamic(map.data(), midpoint), i % 2 == 0 ? i : i + 1) << i;
  }
}

TEST(DynamicMap, ZeroAndBeyondTheEnds) {
  const float* map = SignedDynamicMap().data();
  EXPECT_EQ(EncodeDynamic(map, 0.0f), 127);
  EXPECT_EQ(EncodeDynamic(map, -0.0f), 127);
  EXPECT_EQ(EncodeDynamic(map, 1.0000001f), 255);
  EXPECT_EQ(EncodeDynamic(map, -1.0f), 0);
  EXPECT_EQ(EncodeDynamic(map, std::numeric_limits<float>::infinity()), 255);
  EXPECT_EQ(EncodeDynamic(map, -std::numeric_limits<float>::infinity()), 0);
  EXPECT_EQ(EncodeDynamic(map, std::numeric_limits<float>::quiet_NaN()), 0);
  EXPECT_EQ(EncodeDynamic(UnsignedDynamicMap().data(), -1.0f), 0);
}

}  // namespace
}  // namespace qlora::quant
