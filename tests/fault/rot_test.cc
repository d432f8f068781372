// Every kind of file that a later run reads back, cut short and with bits flipped: each damage is
// found before the run goes on from it, and told with the file's name.
#include <cstring>
#include <random>

#include "engine/checkpoint/checkpoint.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/manifest.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/fault_scale.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

constexpr char kModel[] = "llama3_tied";
// Of so many damages one is also looked for as a run does, which then goes on from the checkpoint
// before.
constexpr int kLookedFor = 50;

class Rot : public testing::TestWithParam<const char*> {
 protected:
  // Two checkpoints; a 4-bit cache is a folder of the same kind.
  void SetUp() override {
    const Dataset data = GoldenDocuments(kModel);
    RecordOptions record = TrainingOptions(kModel, data, 1, 1);
    record.storage.lora.front().modules.resize(2);  // keeps headers short
    ModelRun run({.model = kModel, .record = record}, CpuDevice(1));
    ASSERT_TRUE(env_.CreateFolders("out").ok());
    for (const int64_t step : {1, 2}) {
      RunSteps(&run, data, 1, 1, 1, step - 1);
      proto::RunState state;
      state.set_step(step);
      state.set_job_hash("hash");
      state.add_log_history()->set_loss(1.5);
      const OutputFiles files{.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}}};
      const absl::Status saved = SaveCheckpoint(&env_, "out", &run.execution(), files, state);
      ASSERT_TRUE(saved.ok()) << saved;
    }
    good_ = *env_.ReadFile(Path(), 1 << 26);
  }
  std::string Path() const { return std::string("out/checkpoint-2/") + GetParam(); }
  // What is cut at every byte and has every bit flipped: the header, or all of a small file.
  size_t Head() const {
    uint64_t header = 0;
    if (!Path().ends_with(".safetensors")) return good_.size();
    std::memcpy(&header, good_.data(), sizeof(header));
    return sizeof(header) + size_t(header);
  }
  void Put(const std::string& contents) {
    auto file = env_.NewWritableFile(Path());
    ASSERT_TRUE(file.ok() && (*file)->Append(contents).ok() && (*file)->Sync().ok());
  }
  // The damaged one is refused by name, the one before it found.
  void ExpectRefused(const std::string& damaged, const std::string& how) {
    Put(damaged);
    const absl::Status status = VerifyFolder(&env_, "out/checkpoint-2").status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << how << ": " << status;
    ASSERT_THAT(std::string(status.message()), HasSubstr(GetParam())) << how;
    if (damages_++ % kLookedFor != 0) return;
    const auto newest = FindNewestValid(&env_, "out");
    ASSERT_TRUE(newest.ok()) << newest.status();
    ASSERT_EQ(newest->path, "out/checkpoint-1") << how;
    ASSERT_EQ(newest->refused.size(), 1u) << how;
    EXPECT_EQ(newest->refused[0].second, status) << how;
  }
  void ExpectCutFound(size_t at) {
    ExpectRefused(good_.substr(0, at), absl::StrCat("cut at ", at));
  }
  void ExpectFlipFound(size_t bit) {
    std::string damaged = good_;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    ExpectRefused(damaged, absl::StrCat("bit ", bit, " flipped"));
  }

  tests::FaultyEnv env_;
  std::string good_;
  int damages_ = 0;
};

TEST_P(Rot, IsFoundWhereverItIs) {
  const size_t head = Head();
  ASSERT_LE(head, good_.size());
  for (size_t at = 0; at < head && !HasFatalFailure(); ++at) ExpectCutFound(at);
  for (size_t bit = 0; bit < 8 * head && !HasFatalFailure(); ++bit) ExpectFlipFound(bit);
  std::mt19937_64 random(tests::FaultSeed());
  for (int i = 0; i < 1000 && !HasFatalFailure(); ++i) {
    ExpectCutFound(random() % good_.size());
    ExpectFlipFound(random() % (8 * good_.size()));
  }
  Put(good_);
  EXPECT_EQ(FindNewestValid(&env_, "out")->path, "out/checkpoint-2");
}

INSTANTIATE_TEST_SUITE_P(Files, Rot,
                         testing::Values("adapter_model.safetensors", "adapter_config.json",
                                         "optimizer.safetensors", "run_state.pb",
                                         "trainer_state.json", "manifest.pb"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace qlora::engine
