// What saving adds to a run's memory: pieces, never a whole adapter or tokenizer.
#include "engine/checkpoint/checkpoint.h"

#include <algorithm>

#include "engine/model/families.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

constexpr char kModel[] = "llama3_tied";
constexpr int64_t kPieceBytes = 1 << 20;

TEST(CheckpointTest, AnAdapterIsReadInPieces) {
  const Dataset data = GoldenDocuments(kModel);
  ModelRun::Options options{.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)};
  options.record.storage.lora = {
      AllLinears(*ReadModelConfig(Env::Default(), GoldenModelPath(kModel)), /*r=*/1024, 8, false)};
  ModelRun run(options, CpuDevice(1));
  run.StartAdapter(0, 3);

  tests::FaultyEnv env;
  ASSERT_TRUE(env.CreateFolders("out").ok());
  int64_t largest = 0;
  const StateReader read = [&](kernels::ConstTensor view, void* to, int64_t bytes) {
    largest = std::max(largest, bytes);
    return run.execution().Read(view, to, bytes);
  };
  proto::RunState state;
  state.set_step(1);
  OutputFiles files{.adapter = {.r = 1024, .lora_alpha = 8}};
  const absl::Status saved = SaveCheckpoint(&env, "out", run.storage(), read, files, state);
  ASSERT_TRUE(saved.ok()) << saved;
  const std::string path = JoinPath("out/checkpoint-1", kAdapterModelFile);
  EXPECT_GT(*env.FileSize(path), kPieceBytes);
  EXPECT_LE(largest, kPieceBytes);

  // The same file as from the whole adapter.
  const absl::StatusOr<LoadedAdapter> loaded = ReadAdapter(&env, "out/checkpoint-1", {});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(WriteAdapter(&env, "out", loaded->adapter).ok());
  EXPECT_TRUE(*env.ReadFile(JoinPath("out", kAdapterModelFile), 1 << 26) ==
              *env.ReadFile(path, 1 << 26));
}

}  // namespace
}  // namespace qlora::engine
