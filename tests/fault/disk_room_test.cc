// What a run says at its start of a disk that will not have room for it.
#include "engine/checkpoint/disk_room.h"

#include "engine/checkpoint/checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

constexpr char kModel[] = "llama3_tied";
constexpr int64_t kBlock = 4096;

class DiskRoom : public testing::TestWithParam<proto::Mode::Value> {
 protected:
  DiskRoom() : data_(GoldenDocuments(kModel)), run_(Options(), CpuDevice(1)) {
    EXPECT_TRUE(env_.CreateFolders("base").ok());
    for (const char* name : {"base/tokenizer.json", "base/config.json"}) {
      auto file = env_.NewWritableFile(name);
      EXPECT_TRUE(file.ok() && (*file)->Append(absl::string_view("{}")).ok());
    }
    setup_.env = &env_;
    setup_.tokenizer_folder = "base";
    setup_.device = CpuDevice(1);
    setup_.total_steps = 10;
    setup_.job.set_output_dir("runs/out");
    setup_.job.mutable_training()->set_save_steps(2);
    setup_.job.mutable_training()->set_save_total_limit(3);
  }

  ModelRun::Options Options() const {
    ModelRun::Options options{.model = kModel, .record = TrainingOptions(kModel, data_, 1, 1)};
    options.record.storage.mode = GetParam();
    if (GetParam() == proto::Mode::FULL) options.record.storage.lora = {};
    return options;
  }
  DiskNeed Need(int64_t done = 0) const { return NeedOf(setup_, run_.plan(), 0, done); }
  void Save(int64_t step) {
    const OutputFiles files{.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}},
                            .tokenizer_folder = "base",
                            .config_file = "base/config.json"};
    proto::RunState state;
    state.set_step(step);
    ASSERT_TRUE(env_.CreateFolders("runs/out").ok());
    const absl::Status saved = SaveCheckpoint(&env_, "runs/out", &run_.execution(), files, state);
    ASSERT_TRUE(saved.ok()) << saved;
  }

  const Dataset data_;
  tests::FaultyEnv env_;
  ModelRun run_;
  engine::Setup setup_;
};

TEST_P(DiskRoom, IsReckonedAsCheckpointsTakeIt) {
  Save(2);
  const auto names = env_.List("runs/out/checkpoint-2");
  ASSERT_TRUE(names.ok()) << names.status();
  int64_t taken = 0;
  for (const std::string& name : *names) {
    taken += kernels::AlignUp(*env_.FileSize("runs/out/checkpoint-2/" + name), kBlock);
  }
  setup_.job.mutable_training()->set_save_steps(0);
  setup_.job.set_overwrite_output_dir(true);
  const DiskNeed need = Need();
  ASSERT_EQ(need.checkpoints, 1);
  EXPECT_GE(need.checkpoint_bytes, taken);
  // What is reckoned for headers is much, in a model as small as this.
  EXPECT_LE(need.checkpoint_bytes, taken + taken / 4 + (64 << 10));
}

TEST_P(DiskRoom, IsForAsManyAsLieThereAtATime) {
  EXPECT_EQ(Need().checkpoints, 4);  // three, and the new one before the oldest goes
  setup_.eval_batches.emplace(&data_, BatcherOptions{});
  EXPECT_EQ(Need().checkpoints, 5) << "the best one, whatever is the result at the end";
  setup_.eval_batches.reset();
  setup_.total_steps = 3;
  EXPECT_EQ(Need().checkpoints, 2);  // after steps 2 and 3
  setup_.job.mutable_training()->set_save_steps(0);
  EXPECT_EQ(Need().checkpoints, 1);
  EXPECT_EQ(Need(3).checkpoints, 0);
  EXPECT_GT(Need(3).result_bytes, 0);
}

TEST_P(DiskRoom, OfASweepIsThatOfAllAdapters) {
  if (GetParam() == proto::Mode::FULL) GTEST_SKIP() << "has no adapters";
  const ModelSpec spec = run_.storage().spec;
  StorageOptions options = run_.storage().options;
  options.lora = {AllLinears(spec, 4, 8, false), AllLinears(spec, 64, 8, false)};
  Plan plan;
  plan.run.storage = AddStorage(spec, options, &plan.run.program);
  const DiskNeed first = NeedOf(setup_, plan, 0, 0), second = NeedOf(setup_, plan, 1, 0);
  EXPECT_GT(second.Total(), first.Total());
  const DiskNeed both = NeedOf({.setups = {&setup_, &setup_}}, plan);
  EXPECT_EQ(both.Total(), first.Total() + second.Total());
}

TEST_P(DiskRoom, CountsThoseThatAreThere) {
  for (const int64_t step : {2, 4}) Save(step);
  EXPECT_EQ(Need(4).checkpoints, 2);
  Save(6);
  EXPECT_EQ(Need(6).checkpoints, 1);
  setup_.job.set_overwrite_output_dir(true);
  EXPECT_EQ(Need(0).checkpoints, 1) << "they go first";
}

TEST_P(DiskRoom, ThatIsShortIsSaidWithWhatWouldHelp) {
  const DiskNeed need = Need();
  env_.set_free_space(need.Total());
  EXPECT_EQ(DescribeShortage(&env_, "runs/out", need), "");
  env_.set_free_space(need.Total() - 1);
  const std::string text = DescribeShortage(&env_, "runs/out", need);
  for (const std::string& part :
       {std::string("the disk of output_dir runs/out has "), FormatBytes(need.Total() - 1),
        FormatBytes(need.checkpoint_bytes) + " for 4 checkpoints",
        FormatBytes(need.result_bytes) + " for the result",
        std::string("training.save_total_limit")}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  DiskNeed last = Need(9);
  EXPECT_THAT(DescribeShortage(&env_, "runs/out", last), testing::IsEmpty());
  env_.set_free_space(0);
  EXPECT_THAT(
      DescribeShortage(&env_, "runs/out", last),
      testing::AllOf(HasSubstr("for 1 checkpoint,"), testing::Not(HasSubstr("save_total_limit"))));
}

TEST_P(DiskRoom, ThatNobodyKnowsIsNoShortage) {
  env_.set_free_space(0);
  env_.FailAt(env_.operations(), EIO, /*forever=*/true);
  EXPECT_EQ(DescribeShortage(&env_, "runs/out", {.result_bytes = 1}), "");
}

INSTANTIATE_TEST_SUITE_P(Modes, DiskRoom, testing::Values(proto::Mode::QLORA, proto::Mode::FULL),
                         [](const auto& info) { return proto::Mode::Value_Name(info.param); });

}  // namespace
}  // namespace qlora::engine
