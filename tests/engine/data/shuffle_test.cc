#include "engine/data/shuffle.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;

TEST(ShuffleTest, IsAPermutation) {
  for (const int64_t n : {0, 1, 2, 3, 1000}) {
    std::vector<int64_t> order = Permutation(n, 1, 0, ShuffleStream::kSamples);
    std::sort(order.begin(), order.end());
    std::vector<int64_t> identity(n);
    std::iota(identity.begin(), identity.end(), 0);
    EXPECT_EQ(order, identity);
  }
}

// Resumed runs read in this order, so it stays for ever. Values from an independent Philox in
// Python.
TEST(ShuffleTest, GoldenOrder) {
  EXPECT_THAT(Permutation(8, 42, 0, ShuffleStream::kSamples), ElementsAre(0, 1, 6, 3, 5, 2, 7, 4));
  EXPECT_THAT(Permutation(8, 42, 1, ShuffleStream::kSamples), ElementsAre(6, 2, 1, 4, 7, 5, 3, 0));
}

TEST(ShuffleTest, SeedEpochAndStreamAllMatter) {
  const auto base = Permutation(100, 1, 0, ShuffleStream::kSamples);
  EXPECT_EQ(Permutation(100, 1, 0, ShuffleStream::kSamples), base);
  EXPECT_NE(Permutation(100, 2, 0, ShuffleStream::kSamples), base);
  EXPECT_NE(Permutation(100, 1 + (uint64_t{1} << 32), 0, ShuffleStream::kSamples), base);
  EXPECT_NE(Permutation(100, 1, 1, ShuffleStream::kSamples), base);
  EXPECT_NE(Permutation(100, 1, 0, ShuffleStream::kRows), base);
  EXPECT_NE(Permutation(100, 1, 0, ShuffleStream::kSplit), base);
}

TEST(ShuffleTest, EveryPlaceIsEquallyLikely) {
  constexpr int kN = 5, kTrials = 5000;
  int count[kN][kN] = {};
  for (uint32_t epoch = 0; epoch < kTrials; ++epoch) {
    const auto order = Permutation(kN, 9, epoch, ShuffleStream::kSamples);
    for (int i = 0; i < kN; ++i) ++count[i][order[i]];
  }
  // Binomial(5000, 1/5): deviation 28.3; six of them is a chance of 5e-8 over the 25 places.
  for (const auto& row : count) {
    for (const int c : row) EXPECT_NEAR(c, kTrials / kN, 6 * std::sqrt(kTrials * 0.2 * 0.8));
  }
}

}  // namespace
}  // namespace qlora::engine
