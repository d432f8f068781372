#include "proto/job_parse.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "proto/job_check.h"
#include "proto/job_names.h"

namespace qlora::proto {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ErrorOf(const std::string& text, const std::vector<std::string>& sets = {}) {
  const auto job = ParseJob(text, "j.textproto", sets);
  if (job.ok()) return "";
  EXPECT_EQ(ExitCodeOf(job.status()), kExitBadJob);
  return std::string(job.status().message());
}

TEST(JobParseTest, ReadsAJob) {
  const auto job = ParseJob(R"(
      # a comment
      model: "org/name"
      mode: LORA
      lora { r: 8 target_modules: "q_proj" target_modules: "v_proj" }
      training { learning_rate: 2e-4 max_steps: 10 })",
                            "j.textproto", {});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->mode(), Mode::LORA);
  EXPECT_THAT(job->lora().target_modules(), ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(job->training().learning_rate(), 2e-4);
  EXPECT_FALSE(job->training().has_warmup_steps());
  EXPECT_FALSE(job->has_seed());
}

TEST(JobParseTest, AllErrorsAtOnceWithLineAndColumn) {
  EXPECT_THAT(ErrorOf("model: 5\n"
                      "  mode: QLORB\n"
                      "seed: 1\n"
                      "num_treads: 2\n"
                      "training {\n"
                      "  learning_rate: fast\n"
                      "  max_step: 3\n"
                      "}\n"
                      "output_dir: \"open\n"
                      "compute_dtype: FP33\n"),
              AllOf(HasSubstr("j.textproto: 7 problems:"), HasSubstr("j.textproto:1:8: "),
                    HasSubstr("j.textproto:2:9: unknown value QLORB for mode; did you mean QLORA?"),
                    HasSubstr("j.textproto:4:1: "),
                    HasSubstr("unknown field \"num_treads\"; did you mean num_threads?"),
                    HasSubstr("j.textproto:6:18: "), HasSubstr("j.textproto:7:"),
                    HasSubstr("did you mean max_steps"), HasSubstr("j.textproto:9:"),
                    HasSubstr("j.textproto:10:"), HasSubstr("allowed: BF16, FP32")));
}

TEST(JobParseTest, AMissingValueIsBlamedOnceOnly) {
  const std::string error = ErrorOf("model:\nmode: QLORA\nseed: 1\nnum_threads: 1\n");
  EXPECT_THAT(error, HasSubstr("1 problem:"));
}

TEST(JobParseTest, AFieldInTheWrongMessageIsSentHome) {
  EXPECT_THAT(ErrorOf("learning_rate: 1e-4"), HasSubstr("training { learning_rate }"));
  EXPECT_THAT(ErrorOf("lora { seed: 1 }"), HasSubstr("seed at the top of the job"));
  EXPECT_THAT(ErrorOf("max_new_tokens: 1"),
              HasSubstr("eval { max_new_tokens } or generate { max_new_tokens }"));
  EXPECT_THAT(ErrorOf("quantization { xyzzy: 1 }"),
              HasSubstr("allowed: bnb_4bit_quant_type, bnb_4bit_use_double_quant, block_size"));
}

TEST(JobParseTest, RefusesWhatIsGivenTwiceOrTooLarge) {
  EXPECT_THAT(ErrorOf("seed: 1 seed: 2"), HasSubstr("seed"));
  EXPECT_THAT(ErrorOf("num_threads: 4294967296"), HasSubstr("j.textproto:1:"));
  EXPECT_THAT(ErrorOf("seed: -1"), HasSubstr("j.textproto:1:"));
  EXPECT_THAT(ErrorOf(std::string(kMaxJobBytes + 1, ' ')), HasSubstr("is this file a job?"));
}

TEST(JobParseTest, HostileTextEndsQuickly) {
  const int kDeep = 300'000;
  std::string deep;
  for (int i = 0; i < kDeep; ++i) deep += "x{";
  EXPECT_THAT(ErrorOf(deep), HasSubstr("deep; allowed: 32"));
  EXPECT_THAT(ErrorOf(std::string(kMaxJobBytes, '[')), HasSubstr("deep"));
  EXPECT_THAT(ErrorOf("model: \"{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{\""), "");
  EXPECT_THAT(ErrorOf("# {{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{\n"), "");
  std::string many;
  while (many.size() < kMaxJobBytes - 8) many += "a:1\n";
  EXPECT_THAT(ErrorOf(many), HasSubstr("more"));
  EXPECT_NE(ErrorOf(std::string(1000, '\0')), "");
  EXPECT_NE(ErrorOf("\xff\xfe\x01 : 3"), "");
  EXPECT_THAT(ErrorOf("model: \"\x1b[2J\n"), Not(HasSubstr("\x1b")));
}

TEST(JobParseTest, OverridesWinAndNeedNoQuotes) {
  const auto job =
      ParseJob("seed: 1 model: \"a\" lora { target_modules: \"x\" }", "j",
               {"seed=7", "model=/tmp/a \"b\"", "training.learning_rate=1e-4", "mode=LORA",
                "data.packing=true", "lora.target_modules=q_proj,v_proj",
                "lora.target_modules_regex=a=b|c", "seed=8", "data.alpaca_response_tail= "});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->seed(), 8u);
  EXPECT_EQ(job->model(), "/tmp/a \"b\"");
  EXPECT_EQ(job->training().learning_rate(), 1e-4);
  EXPECT_EQ(job->mode(), Mode::LORA);
  EXPECT_TRUE(job->data().packing());
  EXPECT_THAT(job->lora().target_modules(), ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(job->lora().target_modules_regex(), "a=b|c");
  EXPECT_EQ(job->data().alpaca_response_tail(), " ");
}

TEST(JobParseTest, AnEmptyOverrideUnsets) {
  const auto job =
      ParseJob("seed: 1 lora { target_modules: \"x\" }", "j", {"seed=", "lora.target_modules="});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_FALSE(job->has_seed());
  EXPECT_TRUE(job->lora().target_modules().empty());
}

TEST(JobParseTest, BadOverridesAreReportedWithTheRest) {
  EXPECT_THAT(
      ErrorOf("sed: 1", {"seed", "=1", "training=1", "lora.rank=1", "model.x=1", "seed=-1",
                         "mode=QLORRA", "data.packing=maybe", "lora.target_modules.x=1",
                         "learning_rate=1", "generate.messages=1"}),
      AllOf(HasSubstr("12 problems"), HasSubstr("--set seed: found no path=value"),
            HasSubstr("--set =1: "),
            HasSubstr("--set training=1: found a message; set one of its fields"),
            HasSubstr("--set lora.rank=1: unknown field \"rank\""),
            HasSubstr("--set model.x=1: found \"x\" inside model, which is no message"),
            HasSubstr("--set seed=-1: "), HasSubstr("--set mode=QLORRA: unknown value QLORRA"),
            HasSubstr("--set data.packing=maybe: "), HasSubstr("training { learning_rate }")));
}

TEST(JobNamesTest, EditDistance) {
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("NF4", "nf4"), 0);
  EXPECT_EQ(EditDistance("abc", "acb"), 2);
}

TEST(JobParseTest, SaysWhatAValueMayBe) {
  EXPECT_THAT(ErrorOf("output_dir: /tmp/x"), HasSubstr("a text stands in quotes"));
  EXPECT_THAT(ErrorOf("seed: x"), HasSubstr("a whole number"));
  EXPECT_THAT(ErrorOf("{\"model\": \"a\"}"), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("lora { r: 4"), HasSubstr("the text ends where a }"));
  EXPECT_THAT(ErrorOf("", {"data.packing=yes"}), HasSubstr("allowed: true, false"));
  EXPECT_THAT(ErrorOf("", {"training.learning_rate=1e-4,2e-4"}), HasSubstr("allowed: one word"));
  EXPECT_THAT(ErrorOf("", {"generate.messages=x"}), HasSubstr("generate.messages { ... } in the"));
}

}  // namespace
}  // namespace qlora::proto
