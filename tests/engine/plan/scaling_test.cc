#include "engine/plan/scaling.h"

#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

constexpr Network kNetwork = {.bytes_per_second = 1e9, .latency_seconds = 1e-3};
// A sum of 1e9 bytes that is left on all ranks.
constexpr Traffic kSum = {.bytes = 2e9, .operations = 2};

TEST(Scaling, OneRankSendsNothing) { EXPECT_EQ(ExchangeSeconds(1, kSum, kNetwork), 0); }

TEST(Scaling, EachRankSendsItsShare) {
  // 2 · 3/4 of 1e9 bytes at 1e9 bytes/s, and 2 · 3 messages of 1 ms.
  EXPECT_DOUBLE_EQ(ExchangeSeconds(4, kSum, kNetwork), 1.5 + 6e-3);
  EXPECT_DOUBLE_EQ(ExchangeSeconds(4, 3 * kSum + kSum, kNetwork), 4 * (1.5 + 6e-3));
}

TEST(Scaling, EndsAtTheNumberAskedFor) {
  const std::vector<ScalePoint> points = PredictScaling(2.0, 100, kSum, 3000, kNetwork);
  EXPECT_EQ(points.front().ranks, 1);
  EXPECT_EQ(points.front().tokens_per_second, 50);
  EXPECT_EQ(points.front().efficiency, 1);
  EXPECT_EQ(points.back().ranks, 3000);
  EXPECT_EQ(points.size(), 13u);
  for (const ScalePoint& p : points) {
    EXPECT_DOUBLE_EQ(p.tokens_per_second, p.ranks * 50 * p.efficiency);
    EXPECT_DOUBLE_EQ(p.step_seconds, 2.0 + p.communication_seconds);
  }
}

}  // namespace
}  // namespace qlora::engine
