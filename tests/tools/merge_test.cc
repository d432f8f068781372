// The command `merge`, from a trained adapter to a model of its own.

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
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
  // Refused, with nothing of the workplace changed.
  void ExpectKept(const std::string& output, const std::vector<std::string>& words,
                  std::vector<std::string> more) const {
    SCOPED_TRACE(output);
    for (const std::string& word :
         {"merge.file=" + Path("data.jsonl"), "merge.output=" + Path(output)}) {
      more.push_back("--set");
      more.push_back(word);
    }
    ExpectCommandRefused("merge", 64, words, more);
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

TEST_F(MergeCommand, InputsAndTheRunsFolderAreKept) {
  Ok("train");
  const CommandResult over = Merge({"merge.output=" + Path("out"), "overwrite_output_dir=true"});
  EXPECT_EQ(over.exit_code, 64);
  EXPECT_THAT(over.err, HasSubstr("the result would take the place of merge.adapter"));
  EXPECT_TRUE(std::filesystem::exists(Path("out/adapter_model.safetensors")));
  const CommandResult data = Merge({"merge.output=" + folder_.path(), "overwrite_output_dir=true"});
  EXPECT_EQ(data.exit_code, 64);
  EXPECT_THAT(data.err, HasSubstr("the result would take the place of data.train_file"));
  EXPECT_THAT(data.err, HasSubstr("the result would take the place of output_dir"));
}

TEST_F(MergeCommand, AnEarlierModelIsReplacedWhenTheJobSaysSo) {
  Ok("train");
  fs::create_directory(Path("kept"));
  ExpectKept("kept", {" is there already"}, {});
  EXPECT_EQ(Merge({"merge.output=" + Path("kept"), "overwrite_output_dir=true"}).exit_code, 0)
      << "an empty folder";
  const std::string first = Read("kept/model.safetensors");
  ExpectKept("kept", {" is there already", "set overwrite_output_dir: true"}, {});
  ASSERT_EQ(Merge({"merge.output=" + Path("kept"), "merge.into=BASE", "merge.accept_loss=true",
                   "overwrite_output_dir=true"})
                .exit_code,
            0);
  EXPECT_FALSE(first == Read("kept/model.safetensors"));
  EXPECT_EQ(RunEngine({"verify", Path("kept")}).exit_code, 0);
}

TEST_F(MergeCommand, WhatNoMergeWroteIsKept) {
  Ok("train");
  const std::vector<std::string> overwrite = {"--set", "overwrite_output_dir=true"};
  fs::create_directories(Path("precious/chapter"));
  Write("precious/thesis.txt", "thesis");
  ExpectKept("precious", {"holds chapter, which no merge wrote", "move what is there away"},
             overwrite);
  Write("note", "plain");
  ExpectKept("note", {"is there already and no folder"}, overwrite);
  fs::create_directory_symlink(Path("precious"), Path("link"));
  ExpectKept("link", {"is there already and no folder"}, overwrite);
  fs::copy(Path("base"), Path("downloaded"));
  ExpectKept("downloaded", {"holds config.json, and no manifest.pb that says"}, overwrite);
  ExpectKept("out/checkpoint-12", {"where a run puts checkpoint-12"}, overwrite);

  ASSERT_EQ(Merge({"merge.output=" + Path("merged")}).exit_code, 0);
  Write("merged/thesis.txt", "thesis");
  ExpectKept("merged", {"holds thesis.txt, which no merge wrote"}, overwrite);
  fs::remove(Path("merged/thesis.txt"));
  Write("merged/chat_template.jinja", "mine");
  ExpectKept("merged", {"holds chat_template.jinja, which no merge wrote"}, overwrite);
  fs::remove(Path("merged/chat_template.jinja"));
  Write("merged/config.json", "mine");
  ExpectKept("merged", {"holds config.json, which is not as it was merged"}, overwrite);
  Write("merged/manifest.pb", "");
  ExpectKept("merged", {"holds config.json, and no manifest.pb that says"}, overwrite);
}

// A checkpoint of all weights is a model too, with a manifest.
TEST_F(MergeCommand, ACheckpointIsKept) {
  Ok("train");
  const std::string job =
      std::exchange(job_, "mode: FULL num_threads: 1 training { max_steps: 2 save_steps: 2 }\n");
  Ok("train", {"--set", "output_dir=" + Path("full")});
  job_ = job;
  ExpectKept("full/checkpoint-2", {"which no merge wrote"}, {"--set", "overwrite_output_dir=true"});
}

TEST_F(MergeCommand, NamesThatARunGivesAreNotTaken) {
  Ok("train");
  fs::create_directory_symlink(Path("out"), Path("link"));
  for (const std::string name : {"out/checkpoint-4", "out/runs/here", "out/merge", "out/drift",
                                 "out/quantized", "out/model.safetensors", "out/.hidden",
                                 "out/plan_report.txt", "link/merge", "base/../out/merge"}) {
    ExpectKept(name, {"stands where a run puts "}, {});
  }
  ExpectKept("replaced-x", {"is no name for a model"}, {});
  ExpectKept("out/..", {}, {});
}

TEST_F(MergeCommand, TheModelsFolderIsKept) {
  Ok("train");
  fs::create_directory_symlink(Path("base"), Path("link"));
  for (const std::string name :
       {"base/merged", "base/model-00001-of-00001.safetensors", "link/merged", "base/a/b"}) {
    ExpectKept(name, {"lie in each other", "give a folder outside it"}, {});
  }
  // A model that was merged is one that no merge from it may replace.
  ASSERT_EQ(Merge({"merge.output=" + Path("merged")}).exit_code, 0);
  fs::create_directory_symlink(folder_.path(), Path("other"));
  ExpectKept("other/merged", {"lie in each other"},
             {"--set", "overwrite_output_dir=true", "--set", "model=" + Path("merged")});
  // Whoever keeps the runs in the model's folder has them apart from its files.
  const auto before = TreeOf(Path("base"));
  const std::string loss = LossOf("base", "LORA");
  fs::create_directory(Path("base/runs"));
  fs::copy(Path("out"), Path("base/runs/orders"), fs::copy_options::recursive);
  ASSERT_EQ(Merge({"output_dir=" + Path("base/runs/orders")}).exit_code, 0);
  EXPECT_TRUE(fs::exists(Path("base/runs/orders/merged/config.json")));
  const auto after = TreeOf(Path("base"));
  for (const auto& [name, contents] : before) EXPECT_TRUE(after.at(name) == contents) << name;
  EXPECT_EQ(LossOf("base", "LORA"), loss);
}

TEST_F(MergeCommand, TypesThatNoOtherProgramLoadsAreScoredOnly) {
  for (const std::string type : {"INT4", "FP4_E3M0"}) {
    SCOPED_TRACE(type);
    const std::string output = "out_" + type, set = "quantization.bnb_4bit_quant_type=" + type;
    Ok("train", {"--set", set, "--set", "output_dir=" + Path(output)});
    ExpectCommandRefused("merge", 64,
                         {"quantization.bnb_4bit_quant_type: found " + type, "allowed: NF4, FP4",
                          "merge.into: QUANTIZED"},
                         {"--set", set, "--set", "output_dir=" + Path(output), "--set",
                          "merge.into=QUANTIZED", "--set", "merge.file=" + Path("data.jsonl")});
    ExpectCommandRefused("quantize", 64, {"quantization.bnb_4bit_quant_type: found " + type},
                         {"--set", set});
    EXPECT_EQ(Merge({set, "output_dir=" + Path(output)}).exit_code, 0);
  }
}

TEST_F(MergeCommand, AnotherBaseThanTheOneTrainedOnIsWarnedOf) {
  Ok("train");
  constexpr char kOther[] = "was trained on another base: ";
  constexpr char kTrained[] = "bnb_4bit_quant_type: NF4 block_size: 64";
  const auto merged = [&](std::vector<std::string> fields) {
    fields.push_back("merge.max_loss_increase=100");
    fields.push_back("overwrite_output_dir=true");
    const CommandResult result = Merge(std::move(fields));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.err;
  };
  EXPECT_THAT(merged({}), Not(HasSubstr(kOther)));
  for (const std::string field :
       {"quantization.block_size=128", "quantization.bnb_4bit_quant_type=FP4",
        "quantization.bnb_4bit_use_double_quant=false", "quantization.keep_in_16_bits=down_proj",
        "mode=LORA"}) {
    SCOPED_TRACE(field);
    const std::string warned = merged({field});
    EXPECT_THAT(warned, HasSubstr(kOther));
    EXPECT_THAT(warned, HasSubstr(kTrained));
  }
  // Without qlora_run.json, as beside a checkpoint, the job tells.
  fs::rename(Path("out/qlora_run.json"), Path("aside.json"));
  EXPECT_THAT(merged({"quantization.block_size=128"}), HasSubstr(kOther));
  EXPECT_THAT(merged({"quantization.block_size=128", "merge.adapter=" + Path("out/checkpoint-12")}),
              HasSubstr(kOther));
  // Nothing tells: nothing is guessed.
  fs::remove(Path("out/job.textproto"));
  EXPECT_THAT(merged({"quantization.block_size=128"}), Not(HasSubstr(kOther)));
  Write("out/qlora_run.json", R"({"job": {"decisive_fields": 7}})");
  EXPECT_THAT(merged({"quantization.block_size=128"}), Not(HasSubstr(kOther)));
  Write("out/qlora_run.json", R"([1])");
  EXPECT_THAT(merged({"quantization.block_size=128"}), Not(HasSubstr(kOther)));
}

TEST_F(MergeCommand, TheTextIsWhatTheTerminalShows) {
  Ok("train");
  const CommandResult result = Merge({});
  ASSERT_EQ(result.exit_code, 0);
  const std::string text = Read("out/merge/merge.txt");
  EXPECT_THAT(text, HasSubstr("DEQUANTIZED"));
  EXPECT_THAT(result.out, HasSubstr(text));
}

TEST_F(MergeCommand, AnAdapterThatIsNoneIsRefused) {
  const CommandResult result = Merge({"merge.adapter=" + Path("nowhere")});
  EXPECT_EQ(result.exit_code, 65);
  EXPECT_THAT(result.err, HasSubstr("merge.adapter: "));
  EXPECT_FALSE(std::filesystem::exists(Path("out")));
}

}  // namespace
}  // namespace qlora::tests
