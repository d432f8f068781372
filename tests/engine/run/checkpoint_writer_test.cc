// Checkpoints that are written while training goes on hold the moment they were asked for.
#include "engine/checkpoint/checkpoint_writer.h"

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/io/atomic_folder.h"
#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/faulty_env.h"
#include "tests/support/no_threads.h"

namespace qlora::engine {
namespace {

constexpr char kModel[] = "llama3_tied";

// A disk on which no folder is made in out, so no checkpoint begun, before it is let.
class GatedEnv : public tests::FaultyEnv {
 public:
  void Open() {
    std::lock_guard lock(gate_);
    open_ = true;
    opened_.notify_all();
  }
  absl::Status CreateFolder(const std::string& path) override {
    std::unique_lock lock(gate_);
    if (path != "out") opened_.wait(lock, [&] { return open_; });
    lock.unlock();
    return FaultyEnv::CreateFolder(path);
  }

 private:
  std::mutex gate_;
  std::condition_variable opened_;
  bool open_ = false;
};

class CheckpointWriterTest : public testing::TestWithParam<proto::Mode::Value> {
 protected:
  CheckpointWriterTest() : data_(GoldenDocuments(kModel)), run_(Options(), CpuDevice(1)) {
    EXPECT_TRUE(env_.CreateFolders("out").ok());
    PutConfig(&env_);
  }

  ModelRun::Options Options() const {
    ModelRun::Options options{.model = kModel, .record = TrainingOptions(kModel, data_, 1, 1)};
    options.record.storage.mode = GetParam();
    if (GetParam() == proto::Mode::FULL) options.record.storage.lora = {};
    return options;
  }
  static void PutConfig(Env* env) {
    auto file = env->NewWritableFile("config.json");
    ASSERT_TRUE(file.ok() && (*file)->Append(absl::string_view("{}")).ok() &&
                (*file)->Close().ok());
  }
  void Train(int64_t step) { RunSteps(&run_, data_, 1, 1, 1, step); }
  static OutputFiles Files() {
    return {.adapter = {.r = 4, .lora_alpha = 8, .target_modules = {"q_proj"}},
            .config_file = "config.json"};
  }
  static proto::RunState At(int64_t step) {
    proto::RunState state;
    state.set_step(step);
    return state;
  }
  static std::string Read(Env* env, const std::string& path) {
    return env->ReadFile(path, 1 << 26).value_or("(none)");
  }
  // Name → contents.
  static std::map<std::string, std::string> Folder(Env* env, const std::string& path) {
    std::map<std::string, std::string> files;
    const auto names = env->List(path);
    EXPECT_TRUE(names.ok()) << names.status();
    for (const std::string& name : *names) files[name] = Read(env, path + "/" + name);
    return files;
  }

  const Dataset data_;
  GatedEnv env_;
  ModelRun run_;
};

TEST_P(CheckpointWriterTest, HoldsTheMomentItWasAskedFor) {
  Train(0);
  tests::FaultyEnv at_once;
  ASSERT_TRUE(at_once.CreateFolders("out").ok());
  PutConfig(&at_once);
  ASSERT_TRUE(SaveCheckpoint(&at_once, "out", &run_.execution(), Files(), At(1)).ok());

  CheckpointWriter writer(&env_, &run_.execution(), {.output_dir = "out", .beside = true});
  ASSERT_TRUE(writer.Save(Files(), At(1), /*now=*/false).ok());
  const std::string before = run_.StateBytes();
  Train(1);
  EXPECT_NE(run_.StateBytes(), before);
  EXPECT_TRUE(writer.Check().ok()) << "it is under way";
  EXPECT_EQ(FindNewestValid(&env_, "out")->path, std::nullopt);
  env_.Open();
  ASSERT_TRUE(writer.Finish().ok());
  EXPECT_TRUE(Folder(&env_, "out/checkpoint-1") == Folder(&at_once, "out/checkpoint-1"));
}

TEST_P(CheckpointWriterTest, AtMostOneIsUnderWayAndOldOnesGoBehindIt) {
  CheckpointWriter writer(&env_, &run_.execution(),
                          {.output_dir = "out", .keep_last = 1, .beside = true});
  ASSERT_TRUE(writer.Save(Files(), At(1), false).ok());
  std::thread opens([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    env_.Open();
  });
  ASSERT_TRUE(writer.Save(Files(), At(2), false).ok());
  EXPECT_TRUE(VerifyFolder(&env_, "out/checkpoint-1").ok() ||
              VerifyFolder(&env_, "out/checkpoint-2").ok());
  ASSERT_TRUE(writer.Save(Files(), At(3), /*now=*/true).ok());
  opens.join();
  EXPECT_EQ(*env_.List("out"), std::vector<std::string>{"checkpoint-3"});
}

TEST_P(CheckpointWriterTest, AnErrorIsToldOnceAndByTheNextCall) {
  env_.Open();
  for (const bool by_check : {true, false}) {
    CheckpointWriter writer(&env_, &run_.execution(), {.output_dir = "out", .beside = true});
    env_.FailAt(env_.operations() + 5, ENOSPC, /*forever=*/true);
    ASSERT_TRUE(writer.Save(Files(), At(1), false).ok());
    absl::Status status;
    while (by_check && status.ok()) status = writer.Check();
    if (!by_check) status = writer.Save(Files(), At(2), false);
    env_.StopFailing();
    EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitIo) << status;
    EXPECT_NE(status.message().find("saving the checkpoint of step 1"), absl::string_view::npos);
    EXPECT_TRUE(writer.Finish().ok());
    ASSERT_TRUE(writer.Save(Files(), At(2), true).ok());
  }
}

TEST_P(CheckpointWriterTest, WithoutAThreadTrainingWaits) {
  env_.Open();
  CheckpointWriter writer(&env_, &run_.execution(), {.output_dir = "out", .beside = true});
  const tests::NoThreads no_threads;
  ASSERT_TRUE(writer.Save(Files(), At(1), /*now=*/false).ok());
  EXPECT_TRUE(VerifyFolder(&env_, "out/checkpoint-1").ok());
}

INSTANTIATE_TEST_SUITE_P(Modes, CheckpointWriterTest,
                         testing::Values(proto::Mode::QLORA, proto::Mode::FULL),
                         [](const auto& info) { return proto::Mode::Value_Name(info.param); });

TEST(StateCopyTest, IsAsLargeAsTheState) {
  const Dataset data = GoldenDocuments(kModel);
  ModelRun run({.model = kModel, .record = TrainingOptions(kModel, data, 1, 1)}, CpuDevice(1));
  const int64_t values = run.storage().space.size();
  // bf16 copy, fp32 master and two moments.
  EXPECT_EQ(StateCopy::BytesOf(run.storage()), values * (2 + 4 + 4 + 4));
  auto copy = StateCopy::Create(run.storage());
  ASSERT_TRUE(copy.ok());
  float value;
  EXPECT_FALSE(copy->Read(run.storage().rope_cos, &value, 4).ok()) << "not trained";
}

}  // namespace
}  // namespace qlora::engine
