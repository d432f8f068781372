// One bit flipped in a rank's adapter, or in the frozen base: found by the next check, the culprit
// named.
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/step/integrity.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/fault_scale.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

constexpr char kModel[] = "llama3_tied";

void FlipBit(ModelRun* run, kernels::Tensor view, uint64_t bit) {
  auto bytes = run->Values<uint8_t>(view);
  bit %= 8 * bytes.size();
  bytes[bit / 8] ^= uint8_t(1 << (bit % 8));
  ASSERT_TRUE(run->execution().Write(view, bytes.data(), int64_t(bytes.size())).ok());
}

TEST(BitFlip, InOneRanksAdapterNamesTheRank) {
  const Dataset data = GoldenDocuments(kModel);
  const uint64_t seed = tests::FaultSeed();
  tests::OnRanks(3, {}, nullptr, [&](Ranks& ranks, kernels::Device*) {
    ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)}, CpuDevice(1));
    auto integrity = Integrity::Create(&run.execution(), &ranks);
    ASSERT_TRUE(integrity.ok()) << integrity.status();
    ASSERT_TRUE(integrity->Check(0).ok());
    std::mt19937_64 random(seed);  // the same on all ranks
    for (int flip = 1; flip <= tests::Times(100, 1000); ++flip) {
      const int culprit = int(random() % 3);
      const uint64_t bit = random();
      if (ranks.rank() == culprit) FlipBit(&run, run.storage().compute, bit);
      const absl::Status found = integrity->Check(flip);
      if (ranks.rank() == culprit) FlipBit(&run, run.storage().compute, bit);
      ASSERT_EQ(proto::ExitCodeOf(found), proto::kExitNumbersBad) << found;
      ASSERT_THAT(std::string(found.message()),
                  HasSubstr(absl::StrCat(": rank ", culprit, " differs from the majority")));
    }
    EXPECT_TRUE(integrity->Check(0).ok());
  });
}

TEST(BitFlip, OfTwoRanksNeitherIsBlamed) {
  const Dataset data = GoldenDocuments(kModel);
  tests::OnRanks(2, {}, nullptr, [&](Ranks& ranks, kernels::Device*) {
    ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)}, CpuDevice(1));
    auto integrity = Integrity::Create(&run.execution(), &ranks);
    ASSERT_TRUE(integrity.ok());
    if (ranks.is_first()) FlipBit(&run, run.storage().compute, 3);
    EXPECT_THAT(std::string(integrity->Check(1).message()),
                HasSubstr("of 2 ranks none has a majority"));
  });
}

// As from caches of different origin: seen before the first step.
TEST(BitFlip, BasesThatDifferFromTheStartAreRefused) {
  const Dataset data = GoldenDocuments(kModel);
  tests::OnRanks(3, {}, nullptr, [&](Ranks& ranks, kernels::Device*) {
    ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)}, CpuDevice(1));
    const WeightSlot& slot = run.storage().weights.back();
    if (ranks.rank() == 1) FlipBit(&run, slot.frozen ? slot.frozen : slot.quantized.codes, 5);
    const absl::Status found = Integrity::Create(&run.execution(), &ranks).status();
    EXPECT_EQ(proto::ExitCodeOf(found), proto::kExitBadData) << found;
    EXPECT_THAT(std::string(found.message()), HasSubstr(": rank 1 differs from the majority"));
  });
}

TEST(BitFlip, InTheFrozenBaseNamesTheWeight) {
  const Dataset data = GoldenDocuments(kModel);
  ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)}, CpuDevice(1));
  auto integrity = Integrity::Create(&run.execution(), nullptr);
  ASSERT_TRUE(integrity.ok());
  RunSteps(&run, data, 1, 1, 1);
  ASSERT_TRUE(integrity->Check(1).ok()) << "training changes nothing of it";
  std::mt19937_64 random(tests::FaultSeed());
  for (int flip = 0; flip < tests::Times(100, 1000); ++flip) {
    const auto& weights = run.storage().weights;
    const WeightSlot& slot = weights[random() % weights.size()];
    const kernels::Tensor view = slot.frozen ? slot.frozen : slot.quantized.codes;
    const uint64_t bit = random();
    FlipBit(&run, view, bit);
    const absl::Status found = integrity->Check(2);
    FlipBit(&run, view, bit);
    ASSERT_EQ(proto::ExitCodeOf(found), proto::kExitNumbersBad) << found;
    ASSERT_THAT(std::string(found.message()), HasSubstr(absl::StrCat(slot.row.name, " ")));
  }
  EXPECT_TRUE(integrity->Check(3).ok());
}

}  // namespace
}  // namespace qlora::engine
