// The same job, again and again, on any number of threads and ranks, and resumed wherever: the same
// bytes. tests/engine/run/equal_bytes_test.cc goes through the modes and the ways to save memory.
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/faulty_env.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

constexpr char kModel[] = "llama3_tied";
constexpr int64_t kRows = 1, kMicroBatches = 4;  // of the global batch

RecordOptions Options(const Dataset& data, int ranks) {
  RecordOptions options = TrainingOptions(kModel, data, kRows, kMicroBatches);
  options.storage.ranks = ranks;
  options.storage.pending_gradients = PendingGradients(kMicroBatches / ranks);
  return options;
}

// Losses of `steps` steps, as text, then all of the state.
std::string Train(ModelRun* run, const Dataset& data, int64_t steps, int64_t first = 0,
                  Ranks* ranks = nullptr) {
  std::string bytes;
  for (const StepResult& step : RunSteps(run, data, kRows, kMicroBatches, steps, first, ranks)) {
    absl::StrAppend(&bytes, step.loss_sum, " ", step.gradient_norm, "\n");
  }
  return bytes + run->StateBytes();
}

TEST(Determinism, TenTimesOnAnyNumberOfThreadsAndRanks) {
  constexpr int64_t kSteps = 2;
  const Dataset data = GoldenDocuments(kModel);
  ModelRun first({.model = kModel, .record = Options(data, 1)}, CpuDevice(1));
  const std::string expected = Train(&first, data, kSteps);
  for (int time = 0; time < 10; ++time) {
    for (const int threads : {1, 2}) {
      for (const int size : {1, 2, 4}) {
        SCOPED_TRACE(absl::StrCat("time ", time, ", ", threads, " threads, ", size, " ranks"));
        if (size == 1) {
          ModelRun run({.model = kModel, .record = Options(data, 1)}, CpuDevice(threads));
          ASSERT_TRUE(Train(&run, data, kSteps) == expected);
          continue;
        }
        tests::OnRanks(
            size, {}, [](int) { return CpuDevice(1); },
            [&](Ranks& ranks, kernels::Device*) {
              ModelRun run({.model = kModel, .record = Options(data, size)}, CpuDevice(threads));
              EXPECT_TRUE(Train(&run, data, kSteps, 0, &ranks) == expected) << ranks.rank();
            });
      }
    }
  }
}

TEST(Determinism, ResumedAtEachOfTwentySteps) {
  constexpr int64_t kSteps = 20;
  const Dataset data = GoldenDocuments(kModel);
  const OutputFiles files{.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}}};
  tests::FaultyEnv env;  // none here: it is a disk in memory
  ASSERT_TRUE(env.CreateFolders("out").ok());
  ModelRun whole({.model = kModel, .record = Options(data, 1)}, CpuDevice(1));
  for (int64_t step = 1; step <= kSteps; ++step) {
    Train(&whole, data, 1, step - 1);
    proto::RunState state;
    state.set_step(step);
    ASSERT_TRUE(SaveCheckpoint(&env, "out", &whole.execution(), files, state).ok());
  }
  const std::string expected = whole.StateBytes();
  for (int64_t step = 1; step < kSteps; ++step) {
    // What it starts from must not matter.
    ModelRun run({.model = kModel, .record = Options(data, 1), .seed = 99}, CpuDevice(1));
    const std::string folder = JoinPath("out", CheckpointName(step));
    ASSERT_TRUE(LoadCheckpoint(&env, folder, &run.execution()).ok());
    Train(&run, data, kSteps - step, step);
    EXPECT_TRUE(run.StateBytes() == expected) << "resumed behind step " << step;
  }
}

}  // namespace
}  // namespace qlora::engine
