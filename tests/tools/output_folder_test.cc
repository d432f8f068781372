// What is in the output folder stays there: refusals, damaged checkpoints, resumes, kills.

#include <signal.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class OutputFolder : public Workplace {
 protected:
  void Train() const {
    const CommandResult result = Run("train");
    ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  }
  std::string Adapter() const { return Read("out/adapter_model.safetensors"); }
};

TEST_F(OutputFolder, BelowAFile) {
  Write("out", "a file");
  const CommandResult result = Run("train");
  EXPECT_EQ(result.exit_code, 74) << result.err;
  EXPECT_THAT(result.err, HasSubstr("output_dir"));
  EXPECT_EQ(Read("out"), "a file");
}

TEST_F(OutputFolder, ThatCannotBeWritten) {
  const CommandResult result = Run("train", {"--set", "output_dir=/proc/sys/run"});
  EXPECT_EQ(result.exit_code, 74) << result.err;
  EXPECT_THAT(result.err, HasSubstr("/proc/sys/run"));
}

TEST_F(OutputFolder, OfAnotherJob) {
  Train();
  ExpectRefused(64, {"another job", "- ", "+ ", "learning_rate", "overwrite_output_dir"},
                {"--set", "training.learning_rate=5e-3"});
}

TEST_F(OutputFolder, OfOtherData) {
  Train();
  Write("data.jsonl", Read("data.jsonl") + "{\"prompt\": \"x\", \"completion\": \"y\"}\n");
  ExpectRefused(64, {"another job", "its data differ"});
}

TEST_F(OutputFolder, OverwrittenOnlyWhenAsked) {
  Train();
  const std::string first = Adapter();
  const CommandResult result =
      Run("train", {"--set", "overwrite_output_dir=true", "--set", "training.learning_rate=5e-3"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(Adapter() == first);
}

// A base that turns out to be broken must not cost the results of the run before.
TEST_F(OutputFolder, OverwritingABrokenJobLosesNothing) {
  Train();
  std::string weights = Read("base/model.safetensors");
  weights.replace(weights.size() - 4, 2, "\xc0\x7f", 2);
  Write("base/model.safetensors", weights);
  ExpectRefused(65, {"NaN or infinity"}, {"--set", "overwrite_output_dir=true"});
}

TEST_F(OutputFolder, OfAModelWithoutCheckpoints) {
  fs::create_directory(Path("out"));
  Write("out/model.safetensors", "somebody's weights");
  ExpectRefused(64, {"model.safetensors", "no checkpoint", "overwrite_output_dir"});
}

TEST_F(OutputFolder, TrainingAgainChangesNoWeight) {
  Train();
  const std::string adapter = Adapter(), metrics = Read("out/metrics.jsonl");
  Train();
  EXPECT_TRUE(Adapter() == adapter);
  EXPECT_EQ(Read("out/metrics.jsonl"), metrics);
}

TEST_F(OutputFolder, DamagedCheckpointIsNamedAndTheOneBeforeUsed) {
  Train();
  const std::string adapter = Adapter();
  std::string states = Read("out/checkpoint-3/optimizer.safetensors");
  states[states.size() / 2] ^= 1;
  Write("out/checkpoint-3/optimizer.safetensors", states);
  const CommandResult result = Run("train");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("checkpoint-3"));
  EXPECT_THAT(result.err, HasSubstr("damaged"));
  EXPECT_THAT(result.out, HasSubstr("going on from"));
  EXPECT_THAT(result.out, HasSubstr("checkpoint-2"));
  EXPECT_TRUE(Adapter() == adapter);
}

TEST_F(OutputFolder, WhereAllCheckpointsAreDamagedNothingStartsByItself) {
  Train();
  for (const char* step : {"1", "2", "3"}) {
    Write(absl::StrCat("out/checkpoint-", step, "/run_state.pb"), "x");
  }
  ExpectRefused(65, {"none of the checkpoints", "overwrite_output_dir"});
}

TEST_F(OutputFolder, VerifyTellsWholeFromDamaged) {
  Train();
  EXPECT_EQ(RunEngine({"verify", Path("out")}).exit_code, 0);
  std::string states = Read("out/checkpoint-2/optimizer.safetensors");
  states[states.size() / 2] ^= 1;
  Write("out/checkpoint-2/optimizer.safetensors", states);
  const CommandResult result = RunEngine({"verify", Path("out")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.out, HasSubstr("whole    " + Path("out/checkpoint-1")));
  EXPECT_THAT(result.out, HasSubstr("damaged  " + Path("out/checkpoint-2")));
  EXPECT_THAT(result.out, HasSubstr("whole    " + Path("out/checkpoint-3")));
}

struct Ending {
  const char* name;
  int signal;
  int exit_code;  // −1: killed
};

class Interrupted : public OutputFolder, public testing::WithParamInterface<Ending> {};

// Stopped at some step, the run goes on to the bytes of one that was never stopped.
TEST_P(Interrupted, GoesOnToTheSameBytes) {
  job_ =
      "training { max_steps: 30 gradient_accumulation_steps: 2 save_steps: 4 logging_steps: 1 }\n"
      "num_threads: 1\n";
  Train();
  const std::string adapter = Adapter(), metrics = Read("out/metrics.jsonl");
  fs::remove_all(Path("out"));
  const CommandResult stopped =
      RunEngine({"train", Path("job.textproto")},
                {.cue = "step 9/30", .on_cue = [](int pid) { ::kill(pid, GetParam().signal); }});
  EXPECT_EQ(stopped.exit_code, GetParam().exit_code) << stopped.out << stopped.err;
  ASSERT_FALSE(fs::exists(Path("out/adapter_model.safetensors")));
  const CommandResult rest = Run("train");
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_THAT(rest.out, HasSubstr("going on from"));
  EXPECT_TRUE(Adapter() == adapter);
  EXPECT_EQ(Read("out/metrics.jsonl"), metrics);
}

INSTANTIATE_TEST_SUITE_P(Signals, Interrupted,
                         testing::Values(Ending{"interrupt", SIGINT, 130},
                                         Ending{"terminate", SIGTERM, 143},
                                         Ending{"kill", SIGKILL, -1}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::tests
