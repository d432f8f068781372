// Every command on a good job.

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/io/adapter_file.h"
#include "engine/io/safetensors.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;
using testing::Not;

class Commands : public Workplace {
 protected:
  CommandResult Ok(const std::string& command, const std::vector<std::string>& more = {}) const {
    CommandResult result = Run(command, more);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    return result;
  }
  static std::string LossOf(const std::string& out) {
    const size_t at = out.find("tokens: loss ");
    return at == std::string::npos ? "none in " + out : out.substr(at + 13, 6);
  }
};

TEST_F(Commands, TrainWritesWhatTheReadmePromises) {
  const CommandResult result = Ok("train", {"--set", "data.eval_fraction=0.25"});
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json",
                           "tokenizer_config.json", "trainer_state.json", "qlora_run.json",
                           "metrics.jsonl", "job.textproto", "loss_curve.svg",
                           "checkpoint-1/manifest.pb", "checkpoint-3/manifest.pb"}) {
    EXPECT_TRUE(Output().contains(name)) << name;
  }
  const auto adapter = engine::ReadAdapter(engine::Env::Default(), Path("out"), {});
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->adapter.modules.size(), 14u);
  EXPECT_EQ(adapter->adapter.config.r, 4);
  const auto state = nlohmann::json::parse(Read("out/trainer_state.json"));
  EXPECT_EQ(state["global_step"], 3);
  const auto sidecar = nlohmann::json::parse(Read("out/qlora_run.json"));
  for (const char* what : {"base", "data", "job"}) {
    EXPECT_EQ(sidecar[what]["sha256"].get<std::string>().size(), 64u) << what;
  }
  EXPECT_LE(sidecar["peak_bytes"].get<int64_t>(), sidecar["plan_bytes"].get<int64_t>());
  int64_t train = 0, eval = 0;
  for (const auto& line : absl::StrSplit(Read("out/metrics.jsonl"), '\n', absl::SkipEmpty())) {
    const auto record = nlohmann::json::parse(std::string(line));
    train += record.contains("loss");
    eval += record.contains("eval_loss");
  }
  EXPECT_EQ(train, 3);
  EXPECT_EQ(eval, 2);  // before and after
  EXPECT_THAT(result.out, HasSubstr("trained: "));
}

TEST_F(Commands, ModesTrainAndLowerTheLoss) {
  for (const char* mode : {"QLORA", "LORA", "FULL"}) {
    std::filesystem::remove_all(Path("out"));
    job_ = absl::StrCat("mode: ", mode,
                        " training { max_steps: 30 gradient_accumulation_steps: 8 logging_steps: 1 "
                        "learning_rate: 1e-2 } num_threads: 1\n");
    Ok("train");
    const auto state = nlohmann::json::parse(Read("out/trainer_state.json"));
    const auto& log = state["log_history"];
    EXPECT_LT(log.back()["loss"].get<double>(), 0.97 * log.front()["loss"].get<double>()) << mode;
  }
}

TEST_F(Commands, TheResultOfFullIsAModel) {
  job_ = "mode: FULL training { max_steps: 2 } num_threads: 1\n";
  Ok("train");
  const auto before = LossOf(Ok("eval", {"--set", "eval.file=" + Path("data.jsonl")}).out);
  const auto after = LossOf(
      Ok("eval", {"--set", "eval.file=" + Path("data.jsonl"), "--set", "model=" + Path("out")})
          .out);
  EXPECT_NE(before, after);
}

// B starts from zero, so an adapter that was not trained changes nothing; a trained one does.
TEST_F(Commands, EvalWithAndWithoutAnAdapter) {
  job_ =
      "training { max_steps: 8 warmup_steps: 1 gradient_accumulation_steps: 8 save_steps: 1 "
      "save_total_limit: 9 learning_rate: 1e-2 lr_scheduler_type: LINEAR } num_threads: 1\n";
  Ok("train");
  const std::string file = "eval.file=" + Path("data.jsonl");
  const std::string base = LossOf(Ok("eval", {"--set", file}).out);
  // The warmup's first step has rate 0.
  const std::string first =
      LossOf(Ok("eval", {"--set", file, "--set", "eval.adapter=" + Path("out/checkpoint-1")}).out);
  const std::string last =
      LossOf(Ok("eval", {"--set", file, "--set", "eval.adapter=" + Path("out")}).out);
  EXPECT_EQ(base, first);
  EXPECT_LT(std::stod(last), std::stod(base));
}

TEST_F(Commands, EvalTakesWhatTrainingHoldsOut) {
  data_ += " eval_fraction: 0.25";
  const CommandResult trained = Run("train");
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const CommandResult eval = Run("eval", {"--set", "eval.adapter=" + Path("out")});
  ASSERT_EQ(eval.exit_code, 0) << eval.err;
  EXPECT_THAT(eval.out, HasSubstr("2 samples, "));
  // "step 3  held out: loss ..." and "2 samples, 12 tokens: loss ..." say the same.
  const size_t at = trained.out.rfind("held out: ");
  ASSERT_NE(at, std::string::npos) << trained.out;
  const std::string said = trained.out.substr(at + 10, trained.out.find('\n', at) - at - 10);
  EXPECT_THAT(eval.out, HasSubstr(said));
}

TEST_F(Commands, InitFromGoesOnFromAnAdapter) {
  job_ += "seed: 1\n";
  Ok("train", {"--set", "training.learning_rate=5e-2"});
  const std::string eval = "eval.file=" + Path("data.jsonl");
  const std::string trained =
      LossOf(Ok("eval", {"--set", eval, "--set", "eval.adapter=" + Path("out")}).out);
  Ok("train", {"--set", "output_dir=" + Path("out2"), "--set", "lora.init_from=" + Path("out"),
               "--set", "training.max_steps=1", "--set", "training.warmup_steps=1"});
  // The only step has rate 0.
  EXPECT_TRUE(Read("out2/adapter_model.safetensors") == Read("out/adapter_model.safetensors"));
  EXPECT_EQ(trained,
            LossOf(Ok("eval", {"--set", eval, "--set", "eval.adapter=" + Path("out2")}).out));
  const CommandResult other =
      Run("train", {"--set", "output_dir=" + Path("out3"), "--set", "lora.init_from=" + Path("out"),
                    "--set", "lora.target_modules=q_proj"});
  EXPECT_EQ(other.exit_code, 65) << other.err;
  EXPECT_THAT(other.err, HasSubstr("lora.init_from: "));
  EXPECT_THAT(other.err,
              HasSubstr("unexpected: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"));
  EXPECT_FALSE(std::filesystem::exists(Path("out3")));
}

// Of another rank its bytes would be read as something they are not, of another scale it would be
// another function.
TEST_F(Commands, InitFromAnAdapterOfAnotherRankOrScale) {
  Ok("train");
  std::filesystem::rename(Path("out"), Path("first"));
  ExpectRefused(64,
                {"lora.r: found 8", Path("first"), "set lora.r: 4", "lora.lora_alpha: found 7",
                 "set lora.lora_alpha: 16", "lora.use_rslora: found true"},
                {"--set", "lora.init_from=" + Path("first"), "--set", "lora.r=8", "--set",
                 "lora.lora_alpha=7", "--set", "lora.use_rslora=true"});
  ExpectRefused(65, {"lora.init_from: ", "nowhere/adapter_config.json"},
                {"--set", "lora.init_from=" + Path("nowhere")});
}

TEST_F(Commands, EvalWritesLogits) {
  data_ = "format: PRETOKENIZED";
  Write("data.jsonl", "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5]}\n");
  Ok("eval", {"--set", "eval.file=" + Path("data.jsonl"), "--set",
              "eval.logits_file=" + Path("logits.safetensors")});
  const auto file =
      engine::SafetensorsFile::Open(engine::Env::Default(), Path("logits.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Find("logits.0")->shape, (std::vector<int64_t>{3, 272}));
  EXPECT_EQ(file->Find("logits.1")->shape, (std::vector<int64_t>{2, 272}));
}

TEST_F(Commands, GenerateContinuesAPromptTheSameWayEachTime) {
  const std::vector<std::string> words = {"--set", "generate.prompt=say alpha: ", "--set",
                                          "generate.max_new_tokens=5"};
  EXPECT_EQ(Ok("generate", words).out, Ok("generate", words).out);
}

TEST_F(Commands, InspectShowsTheTrainedTokens) {
  const std::string out = Ok("inspect").out;
  EXPECT_THAT(out, HasSubstr("say alpha: ⟦alpha"));
  EXPECT_THAT(out, HasSubstr("model.layers.1.self_attn.q_proj.weight"));
  EXPECT_THAT(out, HasSubstr("trained: "));
}

TEST_F(Commands, PlanWritesNothing) {
  const std::string out = Ok("plan").out;
  EXPECT_THAT(out, HasSubstr("4-bit weights"));
  EXPECT_THAT(out, HasSubstr("in all"));
  EXPECT_FALSE(std::filesystem::exists(Path("out")));
}

TEST_F(Commands, PlanNeedsNoData) {
  Write("plan.textproto", "model: '" + Path("base") + "' data { max_length: 32 }");
  const CommandResult result = RunEngine({"plan", Path("plan.textproto")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("a step of 512 tokens"));
}

TEST_F(Commands, QuantizeCacheGivesTheSameBytes) {
  Ok("train");
  const std::string adapter = Read("out/adapter_model.safetensors");
  for (const char* out : {"first", "second"}) {
    Ok("train", {"--set", absl::StrCat("output_dir=", Path(out)), "--set",
                 "quantization.quantize_cache=" + Path("cache")});
    EXPECT_TRUE(Read(absl::StrCat(out, "/adapter_model.safetensors")) == adapter) << out;
  }
  // What the cache did is told where all else is told.
  const CommandResult third = Ok("train", {"--set", "output_dir=" + Path("third"), "--set",
                                           "quantization.quantize_cache=" + Path("cache")});
  EXPECT_THAT(third.out, HasSubstr("was loaded from " + Path("cache")));
  EXPECT_EQ(third.err, "");
  EXPECT_FALSE(TreeOf(Path("cache")).empty());
}

TEST_F(Commands, MessagesAreTrainedOnByTurns) {
  data_ = "format: MESSAGES chat_format: CHATML";
  Write("data.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
        "\"content\": \"b\"}]}\n");
  EXPECT_THAT(Ok("inspect").out, HasSubstr("assistant\n⟦b<|im_end|>⟧"));
  Ok("train");
}

TEST_F(Commands, Version) {
  const CommandResult result = RunEngine({"version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("qlora_engine "));
}

}  // namespace
}  // namespace qlora::tests
