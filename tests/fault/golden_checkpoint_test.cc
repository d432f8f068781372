// The checkpoints of released versions, tests/golden/checkpoints/<version>/: each loads, and is
// saved again as it was, byte for byte. A new version adds its own:
//   QLORA_WRITE_GOLDEN=1 fault_tests --gtest_filter='GoldenCheckpoint.*'
#include <cstdlib>
#include <filesystem>

#include "engine/checkpoint/checkpoint.h"
#include "engine/io/manifest.h"
#include "engine/version.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/faulty_env.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

namespace fs = std::filesystem;

constexpr char kModel[] = "llama3_tied";
const fs::path kFolder = fs::path(tests::TestsDir()) / "golden/checkpoints";

class GoldenCheckpoint : public testing::Test {
 protected:
  GoldenCheckpoint()
      : data_(GoldenDocuments(kModel)),
        run_({.model = kModel, .record = Options(data_)}, CpuDevice(1)) {}

  // Two modules keep the files small.
  static RecordOptions Options(const Dataset& data) {
    RecordOptions options = TrainingOptions(kModel, data, 1, 1);
    options.storage.lora.front().modules.resize(2);
    return options;
  }
  OutputFiles Files() const {
    return {.adapter = {.base_model_name_or_path = "base",
                        .r = 4,
                        .lora_alpha = 8,
                        .target_modules = {"q_proj"}},
            .trainer = {.save_steps = 2, .max_steps = 4}};
  }
  static proto::RunState State() {
    proto::RunState state;
    state.set_step(2);
    state.set_updates(2);
    state.set_job_hash("job");
    state.set_base_hash("base");
    state.set_data_hash("data");
    state.set_trained_tokens(100);
    auto* record = state.add_log_history();
    record->set_step(2);
    record->set_loss(1.25);
    return state;
  }

  const Dataset data_;
  ModelRun run_;
};

TEST_F(GoldenCheckpoint, OfEveryVersionLoadsAndIsSavedAgainAsItWas) {
  if (std::getenv("QLORA_WRITE_GOLDEN") != nullptr) {
    RunSteps(&run_, data_, 1, 1, 2);
    fs::create_directories(kFolder / kEngineVersion);
    const absl::Status saved = SaveCheckpoint(Env::Default(), kFolder / kEngineVersion,
                                              &run_.execution(), Files(), State());
    ASSERT_TRUE(saved.ok()) << saved;
  }
  int versions = 0;
  for (const auto& version : fs::directory_iterator(kFolder)) {
    SCOPED_TRACE(version.path());
    const std::string folder = version.path() / "checkpoint-2";
    ASSERT_TRUE(VerifyFolder(Env::Default(), folder, VerifyDepth::kChecksumsAndHashes).ok());
    const auto state = LoadCheckpoint(Env::Default(), folder, &run_.execution());
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(state->SerializeAsString(), State().SerializeAsString());
    tests::FaultyEnv env;
    ASSERT_TRUE(env.CreateFolders("out").ok());
    ASSERT_TRUE(SaveCheckpoint(&env, "out", &run_.execution(), Files(), *state).ok());
    for (const auto& file : fs::directory_iterator(folder)) {
      const std::string name = file.path().filename();
      EXPECT_TRUE(*env.ReadFile("out/checkpoint-2/" + name, 1 << 26) ==
                  *Env::Default()->ReadFile(file.path(), 1 << 26))
          << name;
    }
    ++versions;
  }
  EXPECT_GE(versions, 1);
}

}  // namespace
}  // namespace qlora::engine
