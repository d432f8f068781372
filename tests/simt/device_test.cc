// The CUDA device over the SIMT executor's runtime, which counts what is asked of it.

#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/cuda/cuda_device.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/simt/runtime.h"

namespace qlora::engine {
namespace {

using tests::CudaDevice;

TEST(CudaDevice, AStepIsGraphsAndAllocatesNothing) {
  const Dataset data = GoldenDocuments("qlora_llama");
  ModelRun run({.model = "llama3_tied", .record = TrainingOptions("llama3_tied", data, 1, 2)},
               CudaDevice());
  RunSteps(&run, data, 1, 2, 1);
  const int64_t bytes = simt::Counters().device_bytes;
  simt::ResetCounters();
  RunSteps(&run, data, 1, 2, 1, 1);
  EXPECT_EQ(simt::Counters().device_bytes, bytes);
  // Two micro-batches with what goes before them, one update.
  EXPECT_GE(simt::Counters().graph_launches, 2 + 1);
  EXPECT_GT(simt::Counters().launches, simt::Counters().graph_launches);
}

TEST(CudaDevice, RefusesACardThatIsTooOldOrNotThere) {
  simt::SetCard({.major = 7, .minor = 5});
  const auto old_card = kernels::cuda::CreateCudaDevice({});
  EXPECT_TRUE(absl::IsNotFound(old_card.status()));
  EXPECT_NE(old_card.status().message().find("7.5"), absl::string_view::npos);
  simt::SetCard({});
  EXPECT_TRUE(absl::IsNotFound(kernels::cuda::CreateCudaDevice({.ordinal = 3}).status()));
}

// Wherever in a step the card goes, the step says so and everything is released.
TEST(CudaDevice, SaysWhenTheCardIsLost) {
  const Dataset data = GoldenDocuments("qlora_llama");
  const Batcher batcher(&data, {.rows_per_micro_batch = 1, .micro_batches_per_step = 2});
  const std::vector<MicroBatch> batch = batcher.Step(0);
  for (const int64_t launches : {0, 1, 50, 120}) {
    ModelRun run({.model = "llama3_tied", .record = TrainingOptions("llama3_tied", data, 1, 2)},
                 CudaDevice());
    simt::SetCard({.launches_until_lost = launches});
    TrainStep step(&run.execution(), {.micro_batches = 2});
    const auto result =
        step.Run({.learning_rate = 1e-3, .trained_tokens = Batcher::TrainedTokens(batch)},
                 [&](int64_t j) -> absl::StatusOr<MicroBatchInputs> { return batch[j].inputs(); });
    EXPECT_TRUE(absl::IsUnavailable(result.status())) << launches << ": " << result.status();
    simt::SetCard({});
  }
}

TEST(CudaDevice, SaysWhenMemoryRunsOut) {
  simt::SetCard({.memory_bytes = 1 << 20});
  auto device = CudaDevice();
  EXPECT_LE(device->info().memory_bytes, 1 << 20);
  EXPECT_TRUE(absl::IsResourceExhausted(device->Allocate(2 << 20).status()));
  simt::SetCard({});
}

// Inputs of several steps may be on their way at once: the ring must not hand out a slot that the
// card has still to read.
TEST(CudaDevice, StagesInOrderWithoutWaiting) {
  auto device = CudaDevice();
  constexpr int64_t kCount = 1000;
  const auto buffer = device->Allocate(2 * kCount * 4);
  ASSERT_TRUE(buffer.ok());
  float* at = static_cast<float*>(buffer->data());
  const kernels::Tensor in{at, kernels::DType::kF32, 1, kCount, kCount};
  const kernels::Tensor sum{at + kCount, kernels::DType::kF32, 1, kCount, kCount};
  auto piece = device->Prepare({kernels::AddGradient{.from = in, .into = sum}});
  ASSERT_TRUE(piece.ok());
  for (int i = 1; i <= 20; ++i) {
    // A buffer of its own each time, gone before the card has read it.
    const std::vector<float> values(kCount, float(i));
    ASSERT_TRUE(device->Stage(in.data, values.data(), kCount * 4).ok());
    ASSERT_TRUE((*piece)->Run().ok());
  }
  ASSERT_TRUE(device->Synchronize().ok());
  std::vector<float> result(kCount);
  ASSERT_TRUE(device->CopyOut(result.data(), sum.data, kCount * 4).ok());
  EXPECT_EQ(result, std::vector<float>(kCount, 210.0f));
}

}  // namespace
}  // namespace qlora::engine
