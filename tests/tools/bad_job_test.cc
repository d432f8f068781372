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

TEST_F(BadJob, TooFewOrTooManyWords) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{}, "found no command"},
      {{"train"}, "train: found no job"},
      {{"verify"}, "verify: found no folder"},
      {{"train", "a", "b"}, "found \"b\" behind a"},
      {{"train", "a", "--set"}, "--set: found no value"},
      {{"train", "a", "--rank=x"}, "--rank=x: found no value"},
      {{"train", "a", "--force"}, "unknown option \"--force\""},
      {{"trian", "a"}, "unknown command \"trian\""}};
  for (const auto& [words, cause] : cases) {
    const CommandResult result = RunEngine(words);
    EXPECT_EQ(result.exit_code, 64);
    EXPECT_THAT(result.err, HasSubstr("error: " + cause));
    EXPECT_THAT(result.err, HasSubstr("usage: qlora_engine COMMAND"));
    EXPECT_EQ(result.out, "");
  }
}

TEST_F(BadJob, HelpIsGivenWhereverItIsAskedFor) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"help"}, {"--help"}, {"train", "--help"}}) {
    const CommandResult result = RunEngine(words);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.out, HasSubstr("usage: qlora_engine COMMAND"));
  }
}

// What is asked for and not done is said.
TEST_F(BadJob, WhatACommandLeavesAsideIsToldByIt) {
  job_ += "sweep { ranks: 2 } gates { max_kl: 1 max_eval_loss_increase: 100 }\n";
  data_ += " eval_file: '" + Path("data.jsonl") + "'";
  const CommandResult trained = Run("train");
  EXPECT_EQ(trained.exit_code, 0) << trained.err;
  EXPECT_THAT(trained.err, HasSubstr("warning: train trains one adapter"));
  EXPECT_THAT(trained.err, HasSubstr("warning: gates.max_kl is not measured here"));
  const CommandResult evaluated = Run("eval");
  EXPECT_EQ(evaluated.exit_code, 0) << evaluated.err;
  EXPECT_THAT(evaluated.err, HasSubstr("warning: gates.max_eval_loss_increase is not measured"));
}

TEST_F(BadJob, EveryKindOfFaultInOneRun) {
  job_ += "nonsense: 3\nmemory_limit: '8'\n";
  ExpectRefused(
      64,
      {"problems:", "unknown field \"nonsense\"", "memory_limit: \"8\" is not a size of memory",
       "--set device=GPU: unknown value GPU", "lora.r: found 0; allowed: 1..1024",
       "training.learning_rate: found nan", "data.max_length: found 0", "target_modules_regex"},
      {"--set", "device=GPU", "--set", "lora.r=0", "--set", "training.learning_rate=nan", "--set",
       "data.max_length=0", "--set", "lora.target_modules_regex=["});
}

TEST_F(BadJob, WhatEvalAndGenerateNeed) {
  ExpectCommandRefused("eval", 64, {"eval.file: not given"});
  ExpectCommandRefused("generate", 64, {"generate.prompt: not given", "messages"});
  const std::string file = "eval.file=" + Path("data.jsonl");
  ExpectCommandRefused("eval", 65, {"eval.adapter: ", "nowhere/adapter_config.json"},
                       {"--set", file, "--set", "eval.adapter=" + Path("nowhere")});
  ExpectCommandRefused(
      "generate", 65, {"generate.adapter: ", "nowhere/adapter_config.json"},
      {"--set", "generate.prompt=a", "--set", "generate.adapter=" + Path("nowhere")});
  ExpectCommandRefused("eval", 71, {"memory_limit", "largest items"},
                       {"--set", file, "--set", "memory_limit=1MiB"});
}

TEST_F(BadJob, LogitsOfTextOrOverTheInput) {
  data_ = "";
  const std::string file = "eval.file=" + Path("data.jsonl");
  ExpectCommandRefused("eval", 64, {"eval.logits_file", "PROMPT_COMPLETION", "PRETOKENIZED"},
                       {"--set", file, "--set", "eval.logits_file=" + Path("logits")});
  for (const char* input : {"base/model.safetensors", "data.jsonl", "./base//x"}) {
    ExpectCommandRefused("eval", 64, {"eval.logits_file", "outside the input", "would replace"},
                         {"--set", file, "--set", "eval.logits_file=" + Path(input)});
  }
}

TEST_F(BadJob, LogitsThatCannotBeWritten) {
  data_ = "format: PRETOKENIZED";
  Write("data.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
  Write("file", "");
  ExpectCommandRefused("eval", 74, {"eval.logits_file", "cannot be written", "it is no folder"},
                       {"--set", "eval.file=" + Path("data.jsonl"), "--set",
                        "eval.logits_file=" + Path("file/logits")});
}

TEST_F(BadJob, TargetThatMatchesNothing) {
  ExpectRefused(64, {"q_porj", "q_proj"}, {"--set", "lora.target_modules=q_porj"});
}

TEST_F(BadJob, TargetInSomeLayersOnly) {
  const std::vector<std::string> set = {"--set", "lora.target_modules=model.layers.1.mlp.up_proj"};
  ExpectRefused(64, {"mlp.up_proj", "layers 1 but not in 0", "allow_uneven_targets"}, set);
}

TEST_F(BadJob, PatternThatDoesNotCompile) {
  ExpectRefused(64,
                {"2 problems", "target_modules_regex", "missing closing parenthesis",
                 "training.learning_rate: found -1"},
                {"--set", "lora.target_modules_regex=(", "--set", "training.learning_rate=-1"});
}

TEST_F(BadJob, MoreTokensThanTheModelHasPositions) {
  ExpectRefused(64, {"data.max_length: found 65; allowed: at most 64", "base/config.json"},
                {"--set", "data.max_length=65"});
}

// Nobody gave it, and without data nothing has a length.
TEST_F(BadJob, TheDefaultOfMaxLengthIsNamedAsSuch) {
  Write("short.textproto",
        absl::StrCat("model: '", Path("base"), "' output_dir: '", Path("out"), "'"));
  const CommandResult planned = RunEngine({"plan", Path("short.textproto")});
  EXPECT_EQ(planned.exit_code, 64);
  EXPECT_THAT(planned.err, HasSubstr("found 1024, the default; allowed: at most 64"));
  const CommandResult quantized = RunEngine({"quantize", Path("short.textproto")});
  EXPECT_EQ(quantized.exit_code, 0) << quantized.err;
}

TEST_F(BadJob, AnswersOfAFileWithoutPrompts) {
  data_ = "";
  Write("text.jsonl", "{\"text\": \"no prompt here\"}\n");
  ExpectCommandRefused(
      "eval", 64, {"eval.exact_match: found held-out data in format TEXT"},
      {"--set", "eval.file=" + Path("text.jsonl"), "--set", "eval.exact_match=true"});
}

TEST_F(BadJob, DeviceThatIsNotThere) {
  ExpectRefused(69, {"device: CUDA", "CPU or AUTO"}, {"--set", "device=CUDA"});
}

TEST_F(BadJob, LibraryThatADeviceHasNot) {
  ExpectRefused(64, {"attention_kernel: CUDNN", "its own attention only", "OWN"},
                {"--set", "attention_kernel=CUDNN"});
}

TEST_F(BadJob, InstructionsThatTheCpuLacks) {
  if (__builtin_cpu_supports("avx512bf16")) GTEST_SKIP() << "this CPU has them all";
  ExpectRefused(69, {"cpu_isa", "avx512_bf16", "the best it has"},
                {"--set", "cpu_isa=AVX512_BF16"});
}

TEST_F(BadJob, MemoryLimitTooSmall) {
  ExpectRefused(71, {"memory_limit", "largest items", "would make it fit", "a memory limit of"},
                {"--set", "memory_limit=1MiB"});
}

}  // namespace
}  // namespace qlora::tests
