#include "engine/data/packer.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/data/shuffle.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;

std::vector<int64_t> Identity(size_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

TEST(PackerTest, BestFitTakesTheFullestRow) {
  // 7 and 6 open rows with 3 and 4 free; 3 goes to the first (exact), 4 fills the second.
  EXPECT_THAT(PackBestFit({6, 3, 7, 4}, Identity(4), 10),
              ElementsAre(ElementsAre(2, 1), ElementsAre(0, 3)));
  // First fit would put 2 into the row with 4 free and leave no row for 4.
  EXPECT_THAT(PackBestFit({6, 8, 4, 2}, Identity(4), 10),
              ElementsAre(ElementsAre(1, 3), ElementsAre(0, 2)));
  EXPECT_THAT(PackBestFit({5, 5, 5, 5}, {3, 1, 0, 2}, 10),
              ElementsAre(ElementsAre(3, 1), ElementsAre(0, 2)));
  EXPECT_THAT(PackBestFit({}, {}, 10), ElementsAre());
  EXPECT_THAT(PackBestFit({12, 3}, {0, 1}, 10), ElementsAre(ElementsAre(0), ElementsAre(1)));
  EXPECT_THAT(PackBestFit({10, 10}, {0, 1}, 10), ElementsAre(ElementsAre(0), ElementsAre(1)));
}

TEST(PackerTest, RandomLengthsAreAllThereOnceAndFit) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    constexpr int kN = 500, kCapacity = 64;
    std::vector<int64_t> lengths(kN);
    for (int i = 0; i < kN; ++i) {
      lengths[i] = 1 + Permutation(kCapacity, seed, i, ShuffleStream::kSplit)[0];
    }
    size_t rows_of_first = 0;
    for (uint32_t epoch = 0; epoch < 3; ++epoch) {
      const auto rows =
          PackBestFit(lengths, Permutation(kN, seed, epoch, ShuffleStream::kSamples), kCapacity);
      std::vector<int64_t> all;
      for (const auto& row : rows) {
        int64_t sum = 0;
        for (const int64_t s : row) sum += lengths[s];
        EXPECT_LE(sum, kCapacity);
        all.insert(all.end(), row.begin(), row.end());
      }
      std::sort(all.begin(), all.end());
      EXPECT_EQ(all, Identity(kN));
      const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
      EXPECT_LE(rows.size(), (total / kCapacity + 1) * 11 / 9 + 1);
      if (epoch == 0) rows_of_first = rows.size();
      EXPECT_EQ(rows.size(), rows_of_first);  // the order changes only who is where
    }
  }
}

}  // namespace
}  // namespace qlora::engine
