// A card that is planned for by name asks for what the backend itself asks for on such a card.

#include "kernels/cuda/planned_card.h"

#include "engine/model/config_reader.h"
#include "engine/model/families.h"
#include "engine/plan/plan.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

TEST(PlannedCard, PlansAsTheBackendDoes) {
  const absl::StatusOr<ModelSpec> spec =
      ReadModelConfig(Env::Default(), tests::SourceDir() + "/bench/models/llama3_8b");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto card = *kernels::cuda::CreateCudaDevice({});
  const auto planned = kernels::cuda::PlannedCard({.major = 8});
  for (const int64_t tokens : {16, 1000, 4096}) {
    for (const auto mode : {proto::Mode::QLORA, proto::Mode::LORA, proto::Mode::FULL}) {
      RecordOptions record;
      record.storage.mode = mode;
      proto::Lora lora;
      lora.set_r(16);
      lora.set_lora_alpha(16);
      lora.add_target_modules("all-linear");
      if (mode != proto::Mode::FULL) {
        record.storage.lora = {*ResolveLoraTargets(lora, WeightRows(*spec))};
      }
      record.storage.rope_positions = tokens;
      record.train = {.tokens = tokens, .documents = 1, .trained_rows = tokens};
      record.eval = record.train;
      const PlanLimits limits{.memory_bytes = int64_t{1} << 40, .memory_source = "the card"};
      const MachineRates rates{.matmul_flops = 5e14, .memory_bytes = 2e12};
      const Plan a = BestPlan(*spec, record, *card, rates, limits);
      const Plan b = BestPlan(*spec, record, *planned, rates, limits);
      EXPECT_EQ(a.total_bytes, b.total_bytes) << tokens << " tokens, mode " << mode;
      EXPECT_EQ(a.micro_batch_seconds, b.micro_batch_seconds);
    }
  }
}

// Which adapters' products norms make along, by width, rows and card.
TEST(PlannedCard, MakesFirstProductsWhereTheyPay) {
  const auto rank = [](int major, int minor, int64_t rows, int64_t cols, kernels::DType type) {
    kernels::RmsNormForward norm;
    norm.x = {nullptr, type, rows, cols, cols};
    const auto card = kernels::cuda::PlannedCard({.major = major, .minor = minor});
    return card->FirstProductRank(norm);
  };
  constexpr auto kBf16 = kernels::DType::kBf16;
  EXPECT_EQ(rank(9, 0, 4096, 4096, kBf16), 24);  // tiles of 16 rows
  EXPECT_EQ(rank(9, 0, 4096, 8192, kBf16), 12);  // of 8
  EXPECT_EQ(rank(9, 0, 4096, 16384, kBf16), 0);  // of none
  EXPECT_EQ(rank(8, 0, 4096, 4096, kBf16), 48);  // slower memory
  EXPECT_EQ(rank(8, 9, 4096, 4096, kBf16), 24);  // and little shared memory
  EXPECT_EQ(rank(9, 0, 17, 4096, kBf16), 24);
  EXPECT_EQ(rank(9, 0, 16, 4096, kBf16), 0);  // a decoder's step
  EXPECT_EQ(rank(9, 0, 4096, 4100, kBf16), 0);
  EXPECT_EQ(rank(9, 0, 4096, 4096, kernels::DType::kF32), 0);
  EXPECT_EQ(kernels::cuda::PlannedCard({.major = 9})->FirstProductRank(kernels::Rope{}), 0);
}

TEST(PlannedCard, RunsNothing) {
  const auto planned = kernels::cuda::PlannedCard({.name = "H100", .major = 9});
  EXPECT_TRUE(absl::IsUnimplemented(planned->Allocate(1).status()));
  EXPECT_TRUE(absl::IsUnimplemented(planned->Synchronize()));
}

}  // namespace
}  // namespace qlora::engine
