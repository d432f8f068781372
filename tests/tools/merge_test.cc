// The command `merge`, from a trained adapter to a model of its own.

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;

class MergeCommand : public Workplace {
 protected:
  MergeCommand() {
    job_ =
        "mode: QLORA num_threads: 1 lora { r: 4 lora_dropout: 0 }\n"
        "training { max_steps: 12 gradient_accumulation_steps: 4 learning_rate: 2e-2\n"
        "  save_steps: 0 lr_scheduler_type: CONSTANT }\n";
  }

  CommandResult Ok(const std::string& command, const std::vector<std::string>& more = {}) const {
    CommandResult result = Run(command, more);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    return result;
  }
  CommandResult Merge(std::vector<std::string> fields) const {
    std::vector<std::string> words = {"--set", "merge.file=" + Path("data.jsonl")};
    for (std::string& field : fields) {
      words.push_back("--set");
      words.push_back(std::move(field));
    }
    return Run("merge", words);
  }
  Json Report() const { return Json::parse(Read("out/merge/merge.json")); }
  std::map<std::string, Json> Ways() const {
    std::map<std::string, Json> ways;
    const Json report = Report();
    for (const Json& way : report["merged"]) ways[way["into"].get<std::string>()] = way;
    return ways;
  }
  static double Number(const Json& way, const char* field) { return way[field].get<double>(); }
  // What `eval` says of a model without an adapter.
  std::string LossOf(const std::string& model, const std::string& mode) const {
    const CommandResult result = Ok("eval", {"--set", "eval.file=" + Path("data.jsonl"), "--set",
                                             "model=" + Path(model), "--set", "mode=" + mode});
    const size_t at = result.out.find("tokens: loss ");
    return at == std::string::npos ? result.out : result.out.substr(at + 13, 6);
  }
};

TEST_F(MergeCommand, EachWayIsScoredAndTheOneAskedForIsWritten) {
  Ok("train");
  for (const std::string into : {"BASE", "DEQUANTIZED", "QUANTIZED"}) {
    SCOPED_TRACE(into);
    const CommandResult result =
        Merge({"merge.into=" + into, "merge.output=" + Path(into), "merge.accept_loss=true"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    auto ways = Ways();
    ASSERT_EQ(ways.size(), 3u);
    for (const auto& [name, way] : ways) EXPECT_EQ(way["written"], name == into);
    // The weights that were trained, but for their rounding to the stored type: nearest by far.
    EXPECT_LT(Number(ways["DEQUANTIZED"], "kl"), 0.1 * Number(ways["QUANTIZED"], "kl"));
    EXPECT_LT(Number(ways["DEQUANTIZED"], "kl"), 0.1 * Number(ways["BASE"], "kl"));
    EXPECT_EQ(LossOf(into, into == "QUANTIZED" ? "QLORA" : "LORA"),
              absl::StrFormat("%.4f", Number(ways[into], "loss")));
    EXPECT_THAT(Ok("eval", {"--set", "eval.file=" + Path("data.jsonl"), "--set",
                            "eval.adapter=" + Path("out")})
                    .out,
                HasSubstr(absl::StrFormat("loss %.4f", Report()["adapter_loss"].get<double>())));
    EXPECT_EQ(RunEngine({"verify", Path(into)}).exit_code, 0);
    for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
      EXPECT_TRUE(std::filesystem::exists(Path(into) + "/" + name)) << name;
    }
    EXPECT_THAT(Read("out/merge/merge.html"), HasSubstr("written: " + into));
  }
  // Nothing else stays behind.
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
    EXPECT_NE(entry.path().filename().string().substr(0, 4), ".tmp") << entry.path();
  }
}

TEST_F(MergeCommand, OverTheToleranceNothingIsWritten) {
  Ok("train");
  int refused = 0;
  for (const std::string into : {"BASE", "DEQUANTIZED", "QUANTIZED"}) {
    SCOPED_TRACE(into);
    const CommandResult result = Merge({"merge.into=" + into, "merge.max_loss_increase=0"});
    const bool rises = Number(Ways()[into], "loss_increase") > 0;
    EXPECT_EQ(result.exit_code, rises ? 79 : 0) << result.err;
    EXPECT_EQ(std::filesystem::exists(Path("out/merged")), !rises);
    EXPECT_EQ(result.err.find("merge.max_loss_increase: merged into " + into) != std::string::npos,
              rises);
    refused += rises;
    std::filesystem::remove_all(Path("out/merged"));
  }
  EXPECT_GT(refused, 0);
}

TEST_F(MergeCommand, InModeLoraThereIsOneWay) {
  job_ += "compute_dtype: FP32\n";
  job_.replace(job_.find("QLORA"), 5, "LORA");
  Ok("train");
  ASSERT_EQ(Merge({}).exit_code, 0);
  auto ways = Ways();
  ASSERT_EQ(ways.size(), 1u);
  // What rounding to the stored bf16 changes.
  EXPECT_LT(Number(ways["BASE"], "kl"), 1e-3);
  EXPECT_LT(Report()["adapter_loss"].get<double>(), 0.99 * Report()["base_loss"].get<double>());
}

// Of a base that is stored in 4 bits the values are those of the one that was quantized for the
// run.
TEST_F(MergeCommand, ABaseStoredIn4BitsHasNoStoredWeights) {
  Ok("train");
  ASSERT_EQ(Merge({"merge.output=" + Path("from16")}).exit_code, 0);
  Ok("quantize");
  const std::string model = "model=" + Path("out/quantized");
  const CommandResult refused = Merge({model, "merge.into=BASE"});
  EXPECT_EQ(refused.exit_code, 64);
  EXPECT_THAT(refused.err, HasSubstr("merge.into: found BASE"));
  ASSERT_EQ(Merge({model, "merge.output=" + Path("from4")}).exit_code, 0);
  EXPECT_EQ(Ways().size(), 2u);
  EXPECT_TRUE(Read("from4/model.safetensors") == Read("from16/model.safetensors"));
}

TEST_F(MergeCommand, WhatIsThereIsKeptUnlessTheJobSaysOtherwise) {
  Ok("train");
  std::filesystem::create_directory(Path("kept"));
  Write("kept/config.json", "mine");
  const std::string output = "merge.output=" + Path("kept");
  const CommandResult refused = Merge({output});
  EXPECT_EQ(refused.exit_code, 64);
  EXPECT_THAT(refused.err, HasSubstr(Path("kept") + " is there already"));
  EXPECT_EQ(Read("kept/config.json"), "mine");
  ASSERT_EQ(Merge({output, "overwrite_output_dir=true"}).exit_code, 0);
  EXPECT_NE(Read("kept/config.json"), "mine");
  const CommandResult over = Merge({"merge.output=" + Path("out"), "overwrite_output_dir=true"});
  EXPECT_EQ(over.exit_code, 64);
  EXPECT_THAT(over.err, HasSubstr("the result would take the place of merge.adapter"));
  EXPECT_TRUE(std::filesystem::exists(Path("out/adapter_model.safetensors")));
  const CommandResult data = Merge({"merge.output=" + folder_.path(), "overwrite_output_dir=true"});
  EXPECT_EQ(data.exit_code, 64);
  EXPECT_THAT(data.err, HasSubstr("the result would take the place of data.train_file"));
  EXPECT_THAT(data.err, HasSubstr("the result would take the place of output_dir"));
}

TEST_F(MergeCommand, AnAdapterThatIsNoneIsRefused) {
  const CommandResult result = Merge({"merge.adapter=" + Path("nowhere")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.err, HasSubstr("merge.adapter: "));
  EXPECT_FALSE(std::filesystem::exists(Path("out")));
}

}  // namespace
}  // namespace qlora::tests
