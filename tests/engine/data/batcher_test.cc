#include "engine/data/batcher.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Sample i has 2 + (7 i) mod 11 tokens, ids 100 i + position, trained from the second half on.
Dataset MakeDataset(int n) {
  Dataset dataset;
  for (int i = 0; i < n; ++i) {
    Sample sample;
    const int length = 2 + i * 7 % 11;
    for (int t = 0; t < length; ++t) {
      sample.ids.push_back(100 * i + t);
      sample.trained.push_back(t >= length / 2);
    }
    dataset.samples.push_back(sample);
  }
  return dataset;
}

bool Same(const MicroBatch& a, const MicroBatch& b) {
  return a.ids == b.ids && a.positions == b.positions && a.rows == b.rows &&
         a.targets == b.targets && a.samples == b.samples;
}

TEST(BatcherTest, LayoutOfOneMicroBatch) {
  Dataset dataset;
  dataset.samples = {{{10, 11, 12}, {1, 0, 1}, 1}, {{20, 21}, {1, 1}, 2}};
  const Batcher batcher(&dataset, {.rows_per_micro_batch = 2, .shuffle = false});
  const auto step = batcher.Step(0);
  ASSERT_EQ(step.size(), 1u);
  EXPECT_THAT(step[0].ids, ElementsAre(10, 11, 12, 20, 21));
  EXPECT_THAT(step[0].positions, ElementsAre(0, 1, 2, 0, 1));
  // A document's first token is nobody's target, though marked: not 10, and above all not 20
  // from 12.
  EXPECT_THAT(step[0].rows, ElementsAre(1, 3));
  EXPECT_THAT(step[0].targets, ElementsAre(12, 21));
  EXPECT_THAT(step[0].samples, ElementsAre(0, 1));
  ASSERT_EQ(step[0].documents.size(), 2u);
  EXPECT_EQ(step[0].documents[1].query_begin, 3);
  EXPECT_EQ(step[0].documents[1].query_rows, 2);
  EXPECT_EQ(step[0].documents[1].key_begin, 3);
  EXPECT_EQ(step[0].documents[1].key_rows, 2);
  EXPECT_EQ(Batcher::TrainedTokens(step), 2);
  const MicroBatchInputs inputs = step[0].inputs();
  EXPECT_EQ(inputs.ids.size(), 5u);
  EXPECT_EQ(inputs.rows.size(), 2u);
}

struct Setting {
  int samples;
  int64_t rows, micro_batches, max_length;
  bool packing, shuffle;
};

class BatcherPropertyTest : public ::testing::TestWithParam<Setting> {};

TEST_P(BatcherPropertyTest, EachEpochHoldsEachSampleOnceAndNothingElse) {
  const Setting& s = GetParam();
  const Dataset dataset = MakeDataset(s.samples);
  const BatcherOptions options{s.rows, s.micro_batches, s.max_length, s.packing, s.shuffle, 3};
  const Batcher batcher(&dataset, options);
  const BatchCapacity capacity = batcher.capacity();
  const int64_t steps = batcher.StepsOf(1);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::multiset<int64_t> seen;
    for (int64_t step = epoch * steps; step < (epoch + 1) * steps; ++step) {
      const auto batches = batcher.Step(step);
      ASSERT_EQ(static_cast<int64_t>(batches.size()), s.micro_batches);
      EXPECT_FALSE(batches[0].ids.empty()) << "step " << step;
      for (const MicroBatch& b : batches) {
        EXPECT_LE(static_cast<int64_t>(b.ids.size()), capacity.tokens);
        EXPECT_LE(static_cast<int64_t>(b.documents.size()), capacity.documents);
        EXPECT_LE(static_cast<int64_t>(b.rows.size()), capacity.trained_rows);
        EXPECT_LE(static_cast<int64_t>(b.ids.size()), s.packing ? s.rows * s.max_length : 1 << 20);
        if (!s.packing) {
          EXPECT_LE(static_cast<int64_t>(b.samples.size()), s.rows);
        }
        seen.insert(b.samples.begin(), b.samples.end());
        ASSERT_EQ(b.documents.size(), b.samples.size());
        std::vector<int32_t> rows;
        int32_t begin = 0;
        for (size_t d = 0; d < b.documents.size(); ++d) {
          const Sample& sample = dataset.samples[b.samples[d]];
          EXPECT_EQ(b.documents[d].query_begin, begin);
          ASSERT_EQ(b.documents[d].query_rows, static_cast<int32_t>(sample.ids.size()));
          for (int32_t t = 0; t < b.documents[d].query_rows; ++t) {
            EXPECT_EQ(b.ids[begin + t], sample.ids[t]);
            EXPECT_EQ(b.positions[begin + t], t);
            if (t > 0 && sample.trained[t]) rows.push_back(begin + t - 1);
          }
          begin += b.documents[d].query_rows;
        }
        EXPECT_EQ(begin, static_cast<int32_t>(b.ids.size()));
        EXPECT_EQ(b.rows, rows);
        ASSERT_EQ(b.targets.size(), b.rows.size());
        for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(b.targets[i], b.ids[rows[i] + 1]);
      }
    }
    EXPECT_EQ(static_cast<int>(seen.size()), s.samples);
    EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), seen.size());
  }
}

TEST_P(BatcherPropertyTest, AStepDependsOnNothingThatWentBefore) {
  const Setting& s = GetParam();
  const Dataset dataset = MakeDataset(s.samples);
  const BatcherOptions options{s.rows, s.micro_batches, s.max_length, s.packing, s.shuffle, 3};
  const Batcher one(&dataset, options);
  for (int64_t step = 2 * one.StepsOf(1); step >= 0; --step) {
    const auto backwards = one.Step(step);
    const auto fresh = Batcher(&dataset, options).Step(step);
    for (size_t j = 0; j < fresh.size(); ++j) EXPECT_TRUE(Same(backwards[j], fresh[j]));
  }
}

TEST_P(BatcherPropertyTest, EpochsDifferExactlyWhenShuffled) {
  const Setting& s = GetParam();
  if (s.samples < 5) return;
  const Dataset dataset = MakeDataset(s.samples);
  BatcherOptions options{s.rows, s.micro_batches, s.max_length, s.packing, s.shuffle, 3};
  const auto order = [&](int64_t epoch) {
    const Batcher batcher(&dataset, options);
    std::vector<int64_t> samples;
    for (int64_t i = 0; i < batcher.StepsOf(1); ++i) {
      for (const auto& b : batcher.Step(epoch * batcher.StepsOf(1) + i)) {
        samples.insert(samples.end(), b.samples.begin(), b.samples.end());
      }
    }
    return samples;
  };
  const auto first = order(0);
  EXPECT_EQ(first != order(1), s.shuffle);
  options.seed = 4;
  EXPECT_EQ(first != order(0), s.shuffle);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, BatcherPropertyTest,
    ::testing::Values(Setting{1, 1, 1, 16, false, true}, Setting{3, 1, 4, 16, false, true},
                      Setting{10, 2, 3, 16, false, true}, Setting{50, 4, 2, 16, false, false},
                      Setting{50, 4, 3, 16, false, true}, Setting{1, 1, 1, 16, true, true},
                      Setting{50, 1, 4, 12, true, true}, Setting{50, 2, 3, 32, true, true},
                      Setting{50, 2, 3, 32, true, false}, Setting{64, 3, 1, 100, true, true}));

TEST(BatcherTest, MicroBatchesOfASplitStepAreTheSameRows) {
  // Micro-batch j of a step has its content whatever the rank that runs it: 4 x 1 rows of a step
  // are the rows of 2 x 2.
  const Dataset dataset = MakeDataset(16);
  const Batcher fine(&dataset, {.rows_per_micro_batch = 1, .micro_batches_per_step = 4, .seed = 5});
  const Batcher coarse(&dataset,
                       {.rows_per_micro_batch = 2, .micro_batches_per_step = 2, .seed = 5});
  for (int64_t step = 0; step < 4; ++step) {
    std::vector<int32_t> a, b;
    for (const auto& m : fine.Step(step)) a.insert(a.end(), m.ids.begin(), m.ids.end());
    for (const auto& m : coarse.Step(step)) b.insert(b.end(), m.ids.begin(), m.ids.end());
    EXPECT_EQ(a, b);
  }
}

TEST(BatcherTest, TheLastStepIsSharedEvenly) {
  const Dataset dataset = MakeDataset(8 + 5);
  const Batcher batcher(&dataset, {.rows_per_micro_batch = 2, .micro_batches_per_step = 4});
  EXPECT_EQ(batcher.StepsOf(1), 2);
  std::vector<size_t> sizes;
  for (const auto& m : batcher.Step(1)) sizes.push_back(m.samples.size());
  EXPECT_THAT(sizes, ElementsAre(2, 1, 1, 1));
  const Dataset few = MakeDataset(2);
  const Batcher short_of(&few, {.rows_per_micro_batch = 2, .micro_batches_per_step = 4});
  const auto step = short_of.Step(0);
  EXPECT_THAT(step[2].ids, IsEmpty());
  EXPECT_THAT(step[3].documents, IsEmpty());
}

TEST(BatcherTest, StepsAndEpochs) {
  const Dataset dataset = MakeDataset(10);
  const Batcher batcher(&dataset, {.rows_per_micro_batch = 1, .micro_batches_per_step = 4});
  EXPECT_EQ(batcher.StepsOf(1), 3);
  EXPECT_EQ(batcher.StepsOf(2), 6);
  EXPECT_EQ(batcher.StepsOf(0.5), 2);
  EXPECT_EQ(batcher.StepsOf(0.01), 1);
  EXPECT_EQ(batcher.EpochAt(3), 1.0);
  EXPECT_EQ(batcher.EpochAt(0), 0.0);
}

TEST(BatcherTest, CapacityIsReachedWithoutPacking) {
  const Dataset dataset = MakeDataset(4);  // 2, 9, 5, 12 tokens
  const Batcher batcher(&dataset, {.rows_per_micro_batch = 2, .shuffle = false});
  EXPECT_EQ(batcher.capacity().tokens, 21);
  EXPECT_EQ(batcher.capacity().documents, 2);
  EXPECT_EQ(batcher.capacity().trained_rows, 5 + 6);
}

}  // namespace
}  // namespace qlora::engine
