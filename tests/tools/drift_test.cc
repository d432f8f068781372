// The commands that measure and make 4-bit weights, and what follows from what they write.

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/io/adapter_file.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::json;

class DriftCommands : public Workplace {
 protected:
  CommandResult Ok(const std::string& command, const std::vector<std::string>& more = {}) const {
    CommandResult result = Run(command, more);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    return result;
  }
  Json Report(const std::vector<std::string>& more = {}) const {
    Ok("drift", more);
    return Json::parse(Read("out/drift/drift.json"));
  }
  std::string LossOf(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {"--set", "eval.file=" + Path("data.jsonl")};
    all.insert(all.end(), more.begin(), more.end());
    const std::string out = Ok("eval", all).out;
    const size_t at = out.find("tokens: loss ");
    return at == std::string::npos ? "none in " + out : out.substr(at, 40);
  }
  static std::vector<std::string> Set(const std::string& field) { return {"--set", field}; }
};

TEST_F(DriftCommands, TheReportHasAllItsParts) {
  const CommandResult result = Ok("drift");
  const Json report = Json::parse(Read("out/drift/drift.json"));
  EXPECT_EQ(report["samples"], "8");
  EXPECT_EQ(report["tokens"], "46");  // of completions, with their ends
  EXPECT_EQ(report["weights"]["weights"].size(), 14u);
  EXPECT_EQ(report["layers"].size(), 2u);
  EXPECT_EQ(report["types"].size(), 5u + 5u);
  EXPECT_EQ(report["published_order"], Json({"INT4", "FP4 E2M1", "FP4 E3M0", "NF4"}));
  EXPECT_EQ(report["measured_order"].size(), 4u);
  EXPECT_EQ(report["worst_samples"].size(), 8u);
  EXPECT_THAT(report["worst_samples"][0]["text"].get<std::string>(), HasSubstr("say "));
  EXPECT_EQ(report["remedies"].size(), 1u + 1u + 2u);  // blocks of 32, residual, one and two layers
  EXPECT_EQ(report["baseline"]["kl"], 0);
  EXPECT_FALSE(report["baseline"].contains("snr_db"));  // nothing of it is in 4 bits
  EXPECT_GT(report["quantized"]["kl"].get<double>(), report["sixteen_bits"]["kl"].get<double>());
  // Both layers kept are the whole model in 16 bits.
  const Json& both = report["remedies"][3]["model"];
  EXPECT_EQ(both["kl"], report["sixteen_bits"]["kl"]);
  EXPECT_EQ(both["bytes"], report["sixteen_bits"]["bytes"]);
  const std::string text = Read("out/drift/drift.txt");
  EXPECT_THAT(text, HasSubstr("types and block sizes"));
  EXPECT_THAT(result.out, HasSubstr(text)) << "what the terminal shows";
  const std::string page = Read("out/drift/drift.html");
  EXPECT_THAT(page, HasSubstr("Layer by layer"));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
}

TEST_F(DriftCommands, TheBaselineIsWhatEvalSays) {
  // fp32 activations, weights as stored: mode LORA in FP32.
  const Json report = Report({"--set", "drift.baseline=BF16", "--set", "drift.compare_types=false",
                              "--set", "drift.compare_remedies=false"});
  job_ = "mode: LORA compute_dtype: FP32 num_threads: 1\n";
  EXPECT_THAT(LossOf({}),
              HasSubstr(absl::StrFormat("loss %.4f", report["baseline"]["loss"].get<double>())));
  job_ = "mode: QLORA num_threads: 1\n";
  EXPECT_THAT(LossOf({}),
              HasSubstr(absl::StrFormat("loss %.4f", report["quantized"]["loss"].get<double>())));
}

TEST_F(DriftCommands, QuantizeWritesACheckpointOfTheSameBase) {
  const CommandResult result = Ok("quantize", Set("quantization.keep_in_16_bits=down_proj"));
  EXPECT_THAT(result.out, HasSubstr("SNR"));
  const Json errors = Json::parse(Read("out/quantized/quantization_error.json"));
  EXPECT_EQ(errors["weights"].size(), 12u);
  const Json config = Json::parse(Read("out/quantized/config.json"));
  EXPECT_EQ(config["quantization_config"]["llm_int8_skip_modules"],
            Json({"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head"}));
  const std::string kept = "quantization.keep_in_16_bits=down_proj";
  const std::string whole = LossOf(Set(kept));
  EXPECT_EQ(LossOf({"--set", kept, "--set", "model=" + Path("out/quantized")}), whole);
  EXPECT_NE(LossOf({}), whole);
  // Without the field what is in 16 bits is quantized, and the warning says so.
  const CommandResult again = Ok("eval", {"--set", "eval.file=" + Path("data.jsonl"), "--set",
                                          "model=" + Path("out/quantized")});
  EXPECT_THAT(again.err, HasSubstr("2 linears are stored in 16 bits beside 12 in 4 bits"));
  ExpectCommandRefused("quantize", 64, {"holds a model already", "overwrite_output_dir"});
}

TEST_F(DriftCommands, QuantizeReplacesAModelAsAWholeAndNothingElse) {
  const std::vector<std::string> anew = Set("overwrite_output_dir=true");
  Ok("quantize");
  // Of another base, stored in several files, which a loader would take first.
  Write("out/quantized/model.safetensors.index.json", "{}");
  Ok("quantize", anew);
  EXPECT_FALSE(std::filesystem::exists(Path("out/quantized/model.safetensors.index.json")));
  Write("out/quantized/thesis.txt", "thesis");
  ExpectCommandRefused("quantize", 64, {"thesis.txt, which no quantize wrote"}, anew);
  EXPECT_EQ(Read("out/quantized/thesis.txt"), "thesis");
}

TEST_F(DriftCommands, AQuantizedCheckpointIsNoBaseline) {
  Ok("quantize");
  const std::vector<std::string> base = Set("model=" + Path("out/quantized"));
  ExpectCommandRefused("drift", 65, {"stored in 4 bits already", "quantized from"}, base);
  ExpectCommandRefused("quantize", 65, {"stored in 4 bits already"}, base);
}

TEST_F(DriftCommands, BadJobsAreRefused) {
  ExpectCommandRefused("drift", 64, {"mode: found LORA"}, Set("mode=LORA"));
  ExpectCommandRefused("drift", 64, {"drift.block_sizes[1]: found 48", "drift.worst_samples"},
                       {"--set", "drift.block_sizes=64,48", "--set", "drift.worst_samples=-1"});
  ExpectCommandRefused("drift", 64,
                       {"keep_in_16_bits[0]: found \"down_prj\"", "nearest: down_proj"},
                       Set("quantization.keep_in_16_bits=down_prj"));
  ExpectCommandRefused("quantize", 64, {"found INT4", "allowed: NF4, FP4"},
                       Set("quantization.bnb_4bit_quant_type=INT4"));
}

TEST_F(DriftCommands, MoreLayersThanTheModelHasAreRefusedBeforeAnythingIsMeasured) {
  ExpectCommandRefused(
      "drift", 64,
      {"drift.keep_worst_layers[1]: found 100; allowed: at most 2, the layers of the model",
       "drift.apply_keep_worst_layers: found 3; allowed: at most 2"},
      {"--set", "drift.keep_worst_layers=1,100", "--set", "drift.apply_keep_worst_layers=3"});
  const CommandResult trained = Run("train", {"--set", "drift.keep_worst_layers=100"});
  EXPECT_EQ(trained.exit_code, 0) << "of no concern to other commands: " << trained.err;
}

// The default measures one and two.
TEST_F(DriftCommands, AModelOfOneLayerIsMeasuredByDefault) {
  Edit("base/config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  const Json report = Report(Set("drift.compare_types=false"));
  EXPECT_EQ(report["remedies"].size(), 1u + 1u);  // residual, one layer
}

TEST_F(DriftCommands, TheKeptLayersAreWrittenAsAJob) {
  Ok("drift", {"--set", "drift.apply_keep_worst_layers=1", "--set", "drift.compare_types=false"});
  const std::string snippet = Read("out/drift/keep_in_16_bits.textproto");
  EXPECT_THAT(snippet, HasSubstr("keep_in_16_bits: \"model.layers."));
  std::filesystem::remove_all(Path("out"));
  job_ += snippet;
  Ok("train");
}

// The adapter loads, lowers the drift, trains, and is never taken for one of another base.
TEST_F(DriftCommands, AnAdapterFromTheResidualBelongsToItsBase) {
  const Json report =
      Report({"--set", "drift.apply_residual_init=true", "--set", "drift.compare_types=false"});
  EXPECT_GT(report["remedies"][0]["kl_saved"].get<double>(), 0);
  const std::string folder = Path("out/drift/residual_init");
  const auto adapter = engine::ReadAdapter(engine::Env::Default(), folder, {});
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->adapter.config.r, 4);
  EXPECT_EQ(adapter->adapter.modules.size(), 14u);

  const std::vector<std::string> start = {"--set", "lora.init_from=" + folder, "--set",
                                          "output_dir=" + Path("trained")};
  const CommandResult trained = Ok("train", start);
  EXPECT_THAT(trained.err, HasSubstr("Never merge it into the 16-bit base"));
  EXPECT_TRUE(std::filesystem::exists(Path("trained/residual_init.json")));
  std::vector<std::string> other = start;
  other.insert(other.end(), {"--set", "quantization.block_size=128"});
  ExpectCommandRefused("plan", 64, {"lora.init_from", "block_size: 64", "block_size: 128"}, other);
  const CommandResult used = Ok("eval", {"--set", "eval.file=" + Path("data.jsonl"), "--set",
                                         "eval.adapter=" + Path("trained")});
  EXPECT_THAT(used.err, HasSubstr("started from what quantization lost"));
  ExpectCommandRefused("merge", 64, {"merge.into: found BASE", "allowed: DEQUANTIZED, QUANTIZED"},
                       {"--set", "merge.into=BASE", "--set", "merge.adapter=" + Path("trained")});
}

TEST_F(DriftCommands, OneSampleCannotBeHeldOut) {
  Write("data.jsonl", "{\"prompt\": \"say \", \"completion\": \"a\"}\n");
  ExpectCommandRefused("drift", 65, {"data.jsonl has 1 sample", "data.eval_fraction needs two"},
                       Set("data.eval_fraction=0.5"));
}

TEST_F(DriftCommands, AnAdapterIsCarriedByAllModels) {
  Ok("train");
  const Json report = Report({"--set", "drift.adapter=" + Path("out"), "--set",
                              "drift.compare_types=false", "--set", "drift.baseline=FP32"});
  EXPECT_EQ(report["adapter"], Path("out"));
  EXPECT_EQ(report["remedies"].size(), 2u);  // no residual beside an adapter
  EXPECT_THAT(LossOf(Set("eval.adapter=" + Path("out"))),
              HasSubstr(absl::StrFormat("loss %.4f", report["quantized"]["loss"].get<double>())));
}

}  // namespace
}  // namespace qlora::tests
