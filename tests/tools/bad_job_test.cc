// Jobs that are refused before anything is opened.

#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;

class BadJob : public Workplace {};

TEST_F(BadJob, UnknownField) {
  job_ += "trainng { }\n";
  ExpectRefused(64, {"job.textproto", "trainng", "training"});
}

TEST_F(BadJob, AllProblemsAtOnce) {
  job_ =
      "mode: FULL lora { r: -1 } training { learning_rate: -1 warmup_steps: 3 warmup_ratio: 0.1 "
      "}\n";
  ExpectRefused(64, {"lora", "training.learning_rate", "training.warmup", "found -1", "allowed: "});
}

TEST_F(BadJob, ContradictoryModel) {
  job_ += "model_init { config: 'c' tokenizer: 't' }\n";
  ExpectRefused(64, {"model_init", "one of the two"});
}

TEST_F(BadJob, NotText) {
  job_ = "mode: QLORA }\n";
  ExpectRefused(64, {"job.textproto"});
}

TEST_F(BadJob, SetOfAnUnknownPath) {
  ExpectRefused(64, {"training.lr", "learning_rate"}, {"--set", "training.lr=1"});
}

TEST_F(BadJob, SetOfABadValue) {
  ExpectRefused(64, {"training.max_steps", "many"}, {"--set", "training.max_steps=many"});
}

TEST_F(BadJob, NoJobFile) {
  const CommandResult result = RunEngine({"train", Path("absent.textproto")});
  EXPECT_EQ(result.exit_code, 64);
  EXPECT_THAT(result.err, HasSubstr("absent.textproto"));
}

TEST_F(BadJob, UnknownCommand) {
  const CommandResult result = RunEngine({"trian", Path("job.textproto")});
  EXPECT_EQ(result.exit_code, 64);
  EXPECT_THAT(result.err, HasSubstr("usage"));
}

TEST_F(BadJob, TargetThatMatchesNothing) {
  ExpectRefused(64, {"q_porj", "q_proj"}, {"--set", "lora.target_modules=q_porj"});
}

TEST_F(BadJob, TargetInSomeLayersOnly) {
  const std::vector<std::string> set = {"--set", "lora.target_modules=model.layers.1.mlp.up_proj"};
  ExpectRefused(64, {"mlp.up_proj", "layers 1 but not in 0", "allow_uneven_targets"}, set);
}

TEST_F(BadJob, PatternThatDoesNotCompile) {
  ExpectRefused(64, {"target_modules_regex", "("}, {"--set", "lora.target_modules_regex=("});
}

TEST_F(BadJob, MoreTokensThanTheModelHasPositions) {
  ExpectRefused(64, {"data.max_length", "65", "64"}, {"--set", "data.max_length=65"});
}

TEST_F(BadJob, DeviceThatIsNotThere) {
  ExpectRefused(69, {"device: CUDA"}, {"--set", "device=CUDA"});
}

TEST_F(BadJob, MemoryLimitTooSmall) {
  ExpectRefused(71, {"memory_limit", "largest items", "would make it fit", "a memory limit of"},
                {"--set", "memory_limit=1MiB"});
}

}  // namespace
}  // namespace qlora::tests
