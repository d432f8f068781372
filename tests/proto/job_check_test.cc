#include "proto/job_check.h"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "proto/job_defaults.h"

namespace qlora::proto {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kGood[] = R"(model: "m" output_dir: "out" )";

// What LoadJob says about kGood with `extra` added; empty if it takes it.
std::string ErrorWith(const std::string& extra, Command command = Command::kTrain) {
  const auto job = LoadJob(absl::StrCat(kGood, extra), "j", {"data.train_file=t.jsonl"}, command);
  if (job.ok()) return "";
  EXPECT_EQ(ExitCodeOf(job.status()), kExitBadJob) << job.status();
  return std::string(job.status().message());
}

TEST(JobCheckTest, TheSmallestJobsOfEachCommandPass) {
  EXPECT_EQ(ErrorWith(""), "");
  for (const auto& [command, text] : std::vector<std::pair<Command, std::string>>{
           {Command::kPlan, R"(model: "m")"},
           {Command::kPlan, R"(mode: FULL model_init { config: "c" tokenizer: "t" })"},
           {Command::kInspect, R"(model: "m" data { train_file: "t" })"},
           {Command::kEval, R"(model: "m" data { eval_file: "t" })"},
           {Command::kEval, R"(model: "m" eval { file: "t" })"},
           {Command::kGenerate, R"(model: "m" generate { prompt: "" })"},
           {Command::kGenerate,
            R"(model: "m" generate { messages { role: "user" content: "" } })"}}) {
    const auto job = LoadJob(text, "j", {}, command);
    EXPECT_TRUE(job.ok()) << text << ": " << job.status();
  }
}

TEST(JobCheckTest, EachCommandNamesWhatItNeeds) {
  const auto error = [](Command command) {
    return std::string(CheckJob(Job(), command).message());
  };
  EXPECT_THAT(
      error(Command::kTrain),
      AllOf(HasSubstr("3 problems"), HasSubstr("\n  model: not given"),
            HasSubstr("\n  output_dir: not given"), HasSubstr("\n  data.train_file: not given")));
  EXPECT_THAT(error(Command::kPlan), AllOf(HasSubstr("1 problem:"), HasSubstr("\n  model: ")));
  EXPECT_THAT(error(Command::kInspect),
              AllOf(HasSubstr("2 problems"), HasSubstr("data.train_file: not given")));
  EXPECT_THAT(error(Command::kEval), HasSubstr("\n  eval.file: not given"));
  EXPECT_THAT(error(Command::kGenerate), HasSubstr("\n  generate.prompt: not given"));
}

struct Contradiction {
  const char* extra;
  const char* path;
  Command command = Command::kTrain;
};

TEST(JobCheckTest, ContradictionsNameTheirField) {
  const Contradiction cases[] = {
      {R"(model_init { config: "c" tokenizer: "t" } mode: FULL)", "model_init"},
      {R"(model_init { config: "c" tokenizer: "t" })", "model_init"},
      {R"(model_init { } mode: FULL)", "model_init.config"},
      {R"(model_init { config: "c" } mode: FULL)", "model_init.tokenizer"},
      {"mode: LORA quantization { block_size: 64 }", "quantization"},
      {R"(mode: FULL quantization { quantize_cache: "q" })", "quantization"},
      {"mode: FULL parallel { shard_base: true }", "parallel.shard_base"},
      {"mode: FULL lora { r: 8 }", "lora"},
      {R"(mode: FULL lora { init_from: "a" })", "lora.init_from"},
      {R"(lora { target_modules: "q" target_modules_regex: "q" })", "lora.target_modules_regex"},
      {R"(lora { target_modules: "q" target_modules: "all-linear" })", "lora.target_modules[1]"},
      {R"(lora { target_modules: "q" target_modules: "q" })", "lora.target_modules[1]"},
      {R"(lora { target_modules: "" })", "lora.target_modules[0]"},
      {"quantization { block_size: 96 }", "quantization.block_size"},
      {"training { warmup_steps: 3 warmup_ratio: 0.1 }", "training.warmup_steps"},
      {"training { warmup_steps: 30 max_steps: 20 }", "training.warmup_steps"},
      {"training { lr_scheduler_type: CONSTANT warmup_steps: 3 }", "training.lr_scheduler_type"},
      {"training { lr_scheduler_type: CONSTANT warmup_ratio: 0.1 }", "training.lr_scheduler_type"},
      {"training { load_best_model_at_end: true }", "training.load_best_model_at_end"},
      {"training { load_best_model_at_end: true eval_steps: 3 } data { eval_fraction: 0.1 }",
       "training.load_best_model_at_end"},
      {"training { load_best_model_at_end: true eval_steps: 0 } data { eval_fraction: 0.1 }",
       "training.load_best_model_at_end"},
      {"training { per_device_train_batch_size: 65536 } data { max_length: 32768 }",
       "training.per_device_train_batch_size"},
      {R"(data { eval_file: "e" eval_fraction: 0.1 })", "data.eval_fraction"},
      {"data { whole_string_tokenization: true format: TEXT }", "data.whole_string_tokenization"},
      {"data { whole_string_tokenization: true format: MESSAGES }",
       "data.whole_string_tokenization"},
      {R"(data { prompt_field: "completion" })", "data.completion_field"},
      {R"(data { prompt_field: "a" completion_field: "a" })", "data.completion_field"},
      {"data { format: TEXT } eval { exact_match: true }", "eval.exact_match"},
      {"device: CUDA cpu_isa: AVX2", "cpu_isa"},
      {R"(memory_limit: "8")", "memory_limit"},
      {R"(memory_limit: "")", "memory_limit"},
      {R"(training { paged_states_budget: "8" })", "training.paged_states_budget"},
      {"device: CPU attention_kernel: CUDNN", "attention_kernel"},
      {"compute_dtype: FP32 attention_kernel: CUDNN", "attention_kernel"},
      {R"(training { optim: ADAMW_8BIT paged_states_budget: "1MiB" })",
       "training.paged_states_budget"},
      {R"(generate { prompt: "a" messages { role: "user" content: "b" } })", "generate.messages"},
      {R"(generate { messages { role: "boss" content: "b" } })", "generate.messages[0].role"},
      {R"(generate { messages { content: "b" } })", "generate.messages[0].role"},
      {R"(generate { messages { role: "user" } })", "generate.messages[0].content"},
      {R"(generate { messages { role: "assistant" content: "b" } })", "generate.messages[0].role"},
      {R"(mode: FULL eval { adapter: "a" file: "e" })", "eval.adapter", Command::kEval},
      {R"(mode: FULL generate { adapter: "a" prompt: "p" })", "generate.adapter",
       Command::kGenerate},
      {R"(data { format: TEXT } eval { file: "e" logits_file: "l" })", "eval.logits_file",
       Command::kEval},
      {"mode: 3", "mode"},
      {"training { optim: 77 }", "training.optim"},
      {"data { format: -1 }", "data.format"},
      {R"(eval { file: "" })", "eval.file"},
      {R"(quantization { quantize_cache: "a\000b" })", "quantization.quantize_cache"},
      {R"(lora { init_from: "\377\376" })", "lora.init_from"},
      {R"(lora { init_from: "\355\240\200" })", "lora.init_from"},
      {R"(lora { init_from: "\300\200" })", "lora.init_from"},
  };
  for (const Contradiction& c : cases) {
    EXPECT_THAT(ErrorWith(c.extra, c.command), HasSubstr(absl::StrCat("\n  ", c.path, ": ")))
        << c.extra;
  }
}

TEST(JobCheckTest, WhatLooksContradictoryButIsNot) {
  for (const char* extra :
       {"training { max_steps: 10 num_train_epochs: 2 }",  // max_steps wins
        "training { lr_scheduler_type: CONSTANT warmup_ratio: 0 }",
        "training { lr_scheduler_type: CONSTANT warmup_steps: 0 }",
        R"(data { eval_file: "e" eval_fraction: 0 })",
        "training { load_best_model_at_end: true eval_steps: 5 save_steps: 10 } "
        "data { eval_fraction: 0.1 }",
        "mode: FULL quantization { }", "device: CUDA cpu_isa: AUTO",
        R"(mode: FULL eval { adapter: "a" })",  // not this command's
        R"(memory_limit: "8GiB")", R"(lora { init_from: "\303\251\360\237\230\200" })"}) {
    EXPECT_EQ(ErrorWith(extra), "") << extra;
  }
}

TEST(JobCheckTest, OutputMayNotBeTheModel) {
  for (const char* out : {"a/b", "a/b/", "./a//b"}) {
    Job job;
    job.set_model("a/b");
    job.set_output_dir(out);
    EXPECT_THAT(std::string(CheckJob(job, Command::kPlan).message()), HasSubstr("output_dir"));
  }
  Job job;
  job.set_model("/a/b");
  job.set_output_dir("a/b");
  EXPECT_TRUE(CheckJob(job, Command::kPlan).ok());
}

// Starting anew removes output_dir's checkpoints.
TEST(JobCheckTest, InputsMayNotLieAmongTheCheckpointsThatAreRemoved) {
  Job job;
  job.set_model("m");
  job.set_output_dir("out/");
  job.mutable_data()->set_train_file("t.jsonl");
  job.mutable_lora()->set_init_from("./out/checkpoint-7");
  EXPECT_TRUE(CheckJob(job, Command::kTrain).ok());
  job.set_overwrite_output_dir(true);
  EXPECT_THAT(
      std::string(CheckJob(job, Command::kTrain).message()),
      AllOf(HasSubstr("lora.init_from"), HasSubstr("overwrite_output_dir would remove it")));
  job.mutable_lora()->set_init_from("other/checkpoint-7");
  EXPECT_TRUE(CheckJob(job, Command::kTrain).ok());
}

TEST(JobCheckTest, ThreeErrorsOfThreeKindsInOneRun) {
  EXPECT_THAT(ErrorWith("sead: 3\ntraining { warmup_steps: 3 warmup_ratio: nan }"),
              AllOf(HasSubstr("j: 3 problems:"), HasSubstr("did you mean seed?"),
                    HasSubstr("training.warmup_ratio: found nan; allowed: [0, 1]"),
                    HasSubstr("training.warmup_steps: found 3 beside warmup_ratio")));
}

TEST(JobCheckTest, AFieldOnABadLineIsNotCalledAbsent) {
  const auto job = LoadJob("model: 5\noutput_dir: \"o\"\n", "j", {}, Command::kTrain);
  EXPECT_THAT(std::string(job.status().message()),
              AllOf(HasSubstr("j:1:8"), Not(HasSubstr("not given"))));
}

TEST(JobCheckTest, AGateNeedsItsMetric) {
  const std::string gates = "gates { max_eval_loss_increase: 0 min_exact_match: 0.5 }";
  const auto job = LoadJob(absl::StrCat(kGood, gates), "j", {"data.train_file=t"}, Command::kTrain);
  EXPECT_EQ(ExitCodeOf(job.status()), kExitBadJob);
  for (const char* field : {"gates.max_eval_loss_increase", "gates.min_exact_match"}) {
    EXPECT_THAT(std::string(job.status().message()), HasSubstr(field));
  }
  const auto with_metrics = LoadJob(
      absl::StrCat(kGood, gates), "j",
      {"data.train_file=t", "data.eval_fraction=0.1", "eval.exact_match=true"}, Command::kTrain);
  EXPECT_TRUE(with_metrics.ok()) << with_metrics.status();
}

TEST(JobDefaultsTest, AreThePublishedRecipe) {
  const Job job = WithDefaults(Job());
  EXPECT_EQ(job.mode(), Mode::QLORA);
  EXPECT_EQ(job.compute_dtype(), ComputeDtype::BF16);
  EXPECT_EQ(job.quantization().bnb_4bit_quant_type(), QuantType::NF4);
  EXPECT_TRUE(job.quantization().bnb_4bit_use_double_quant());
  EXPECT_EQ(job.quantization().block_size(), 64);
  ASSERT_EQ(job.lora().target_modules_size(), 1);
  EXPECT_EQ(job.lora().target_modules(0), "all-linear");
  EXPECT_EQ(job.training().learning_rate(), 2e-4);
  EXPECT_EQ(job.training().lr_scheduler_type(), Scheduler::CONSTANT_WITH_WARMUP);
  EXPECT_EQ(job.training().warmup_ratio(), 0.03);
  EXPECT_EQ(job.training().max_grad_norm(), 0.3);
  EXPECT_EQ(job.training().optim(), Optimizer::PAGED_ADAMW_32BIT);
  EXPECT_EQ(job.training().adam_beta2(), 0.999);
}

TEST(JobDefaultsTest, WhatIsGivenStays) {
  const auto job = LoadJob(
      "model: \"m\" seed: 0 lora { lora_dropout: 0 target_modules_regex: \"x\" } "
      "data { append_eos: false eval_file: \"e\" } training { max_steps: 5 warmup_steps: 0 "
      "per_device_train_batch_size: 4 }",
      "j", {}, Command::kPlan);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->seed(), 0u);
  EXPECT_EQ(job->generate().seed(), 0u);
  EXPECT_EQ(job->lora().lora_dropout(), 0);
  EXPECT_TRUE(job->lora().target_modules().empty());
  EXPECT_FALSE(job->data().append_eos());
  EXPECT_FALSE(job->training().has_num_train_epochs());
  EXPECT_FALSE(job->training().has_warmup_ratio());
  EXPECT_EQ(job->eval().per_device_eval_batch_size(), 4);
  EXPECT_EQ(job->eval().file(), "e");
}

TEST(JobDefaultsTest, FilledJobsPassTheCheckAndFillNoFurther) {
  for (const char* extra :
       {"", "mode: LORA", "mode: FULL", "training { warmup_steps: 3 max_steps: 9 }",
        "training { lr_scheduler_type: CONSTANT }", "training { lr_scheduler_type: COSINE }",
        R"(lora { target_modules_regex: "x" })", R"(data { eval_file: "e" })"}) {
    const auto job =
        LoadJob(absl::StrCat(kGood, extra), "j", {"data.train_file=t"}, Command::kTrain);
    ASSERT_TRUE(job.ok()) << extra << job.status();
    EXPECT_TRUE(CheckJob(*job, Command::kTrain).ok()) << CheckJob(*job, Command::kTrain);
    EXPECT_TRUE(MessageDifferencer::Equals(*job, WithDefaults(*job))) << extra;
  }
}

// Every scalar that is neither a file nor a choice between fields has a default.
TEST(JobDefaultsTest, NoFieldIsForgotten) {
  const std::set<std::string> without = {"model",
                                         "output_dir",
                                         "memory_limit",
                                         "quantization.quantize_cache",
                                         "lora.target_modules_regex",
                                         "lora.init_from",
                                         "training.warmup_steps",
                                         "training.max_steps",
                                         "training.paged_states_budget",
                                         "data.train_file",
                                         "data.eval_file",
                                         "eval.adapter",
                                         "eval.file",
                                         "eval.logits_file",
                                         "generate.prompt",
                                         "generate.adapter",
                                         "gates.max_eval_loss_increase",
                                         "gates.min_exact_match",
                                         "gates.max_kl",
                                         "economics.instruction",
                                         "economics.calls_per_day",
                                         "economics.price_per_million_prompt_tokens",
                                         "economics.cost_per_hour",
                                         "drift.file",
                                         "drift.adapter",
                                         "drift.apply_keep_worst_layers",
                                         "merge.adapter",
                                         "merge.output",
                                         "merge.file",
                                         "plan.card",
                                         "plan.memory",
                                         "plan.memory_bytes_per_second",
                                         "plan.flops_per_second",
                                         "plan.link_bytes_per_second",
                                         "plan.host_memory"};
  const Job job = WithDefaults(Job());
  std::set<std::string> unset;
  const auto walk = [&](const google::protobuf::Message& message, const std::string& prefix,
                        const auto& self) -> void {
    const auto& descriptor = *message.GetDescriptor();
    for (int i = 0; i < descriptor.field_count(); ++i) {
      const auto* field = descriptor.field(i);
      // Messages that mean something by being there.
      const bool is_request = field->name() == "model_init" || field->name() == "sweep";
      if (field->is_repeated() || is_request) continue;
      if (field->message_type() != nullptr) {
        self(message.GetReflection()->GetMessage(message, field), prefix + field->name() + ".",
             self);
      } else if (!message.GetReflection()->HasField(message, field)) {
        unset.insert(prefix + field->name());
      }
    }
  };
  walk(job, "", walk);
  EXPECT_EQ(unset, without);
}

}  // namespace
}  // namespace qlora::proto
