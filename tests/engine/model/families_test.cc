#include "engine/model/families.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/config_text.h"

namespace qlora::engine {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelSpec Parse(const std::string& text) {
  absl::StatusOr<ModelSpec> spec = ParseModelConfig(text, "config.json");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : ModelSpec{};
}

ModelSpec ParsePatched(const std::string& family, absl::string_view patch) {
  return Parse(PatchedConfig(family, patch));
}

// The published config of Llama 3.2 1B, Transformers 4's dialect.
constexpr char kLlama32[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0", "use_cache": true, "vocab_size": 128256})";

TEST(Families, Llama32) {
  const ModelSpec spec = Parse(kLlama32);
  EXPECT_EQ(spec.family, "llama");
  EXPECT_EQ(spec.hidden, 2048);
  EXPECT_EQ(spec.layers, 16);
  EXPECT_EQ(spec.query_heads, 32);
  EXPECT_EQ(spec.kv_heads, 8);
  EXPECT_EQ(spec.head_size, 64);
  EXPECT_EQ(spec.intermediate, 8192);
  EXPECT_EQ(spec.vocab, 128256);
  EXPECT_EQ(spec.max_positions, 131072);
  EXPECT_EQ(spec.rms_epsilon, 1e-5f);
  EXPECT_EQ(spec.norm_offset, 0.0f);
  EXPECT_EQ(spec.embedding_scale, 1.0f);
  EXPECT_EQ(spec.attention_scale, 0.125f);
  EXPECT_TRUE(spec.tied_embeddings);
  EXPECT_FALSE(spec.qkv_bias || spec.o_bias || spec.mlp_bias || spec.qk_norm);
  EXPECT_THAT(spec.window, Each(0));
  EXPECT_EQ(spec.window.size(), 16u);
  EXPECT_EQ(spec.stored_dtype, kernels::DType::kBf16);
  EXPECT_THAT(spec.eos_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(spec.bos_id, 128000);
  EXPECT_EQ(spec.rope.scaling, RopeSpec::Scaling::kLlama3);
  EXPECT_EQ(spec.rope.rotary_dims, 64);
  EXPECT_EQ(spec.rope.theta, 500000.0);
  EXPECT_EQ(spec.rope.factor, 32.0);
  EXPECT_EQ(spec.rope.low_freq_factor, 1.0);
  EXPECT_EQ(spec.rope.high_freq_factor, 4.0);
  EXPECT_EQ(spec.rope.original_max_positions, 8192);
  // As published: 1,235,814,400.
  EXPECT_EQ(ParameterCount(spec), 1235814400);
}

TEST(Families, BothDialectsGiveTheSame) {
  const ModelSpec old_dialect = ParsePatched("llama", R"({"torch_dtype": "float16",
      "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}})");
  const ModelSpec new_dialect = ParsePatched("llama", R"({"dtype": "float16",
      "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2}})");
  for (const ModelSpec& spec : {old_dialect, new_dialect}) {
    EXPECT_EQ(spec.stored_dtype, kernels::DType::kF16);
    EXPECT_EQ(spec.rope.theta, 5e5);
    EXPECT_EQ(spec.rope.scaling, RopeSpec::Scaling::kLinear);
    EXPECT_EQ(spec.rope.factor, 2.0);
  }
}

TEST(Families, BothDialectsInOneFileThatAgree) {
  const ModelSpec spec = ParsePatched("llama", R"({"torch_dtype": "bfloat16", "dtype": "bfloat16",
      "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2},
      "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}})");
  EXPECT_EQ(spec.rope.factor, 2.0);
  EXPECT_EQ(spec.stored_dtype, kernels::DType::kBf16);
}

TEST(Families, LlamaDefaultsOfAbsentKeys) {
  const ModelSpec spec =
      ParsePatched("llama", R"({"num_key_value_heads": null, "max_position_embeddings": null,
                   "rms_norm_eps": null})");
  EXPECT_EQ(spec.kv_heads, 4);
  EXPECT_EQ(spec.head_size, 16);
  EXPECT_EQ(spec.max_positions, 2048);
  EXPECT_EQ(spec.rms_epsilon, 1e-6f);
  EXPECT_EQ(spec.initializer_range, 0.02f);
  EXPECT_EQ(spec.rope.theta, 10000.0);
  EXPECT_EQ(spec.rope.scaling, RopeSpec::Scaling::kNone);
  EXPECT_EQ(spec.stored_dtype, kernels::DType::kF32);
  EXPECT_FALSE(spec.tied_embeddings);
  EXPECT_FALSE(spec.prequantized);
  EXPECT_EQ(spec.bos_id, 1);
  EXPECT_THAT(spec.eos_ids, ElementsAre(2));
}

TEST(Families, NullTokenIdsMeanNone) {
  nlohmann::json config = GoodConfig("llama");
  config["bos_token_id"] = nullptr;
  config["eos_token_id"] = nullptr;
  const ModelSpec spec = Parse(config.dump());
  EXPECT_EQ(spec.bos_id, -1);
  EXPECT_THAT(spec.eos_ids, IsEmpty());
}

TEST(Families, LlamaBiases) {
  const ModelSpec attention = ParsePatched("llama", R"({"attention_bias": true})");
  EXPECT_TRUE(attention.qkv_bias && attention.o_bias);
  EXPECT_FALSE(attention.mlp_bias);
  EXPECT_TRUE(ParsePatched("llama", R"({"mlp_bias": true})").mlp_bias);
}

TEST(Families, MistralWindow) {
  EXPECT_THAT(Parse(GoodConfig("mistral").dump()).window, ElementsAre(0, 0, 0));
  EXPECT_THAT(ParsePatched("mistral", R"({"sliding_window": 32})").window, ElementsAre(32, 32, 32));
  nlohmann::json absent = GoodConfig("mistral");
  absent.erase("sliding_window");
  EXPECT_THAT(Parse(absent.dump()).window, ElementsAre(4096, 4096, 4096));
}

TEST(Families, MistralHeadsNeedNotMakeUpTheHiddenSize) {
  const ModelSpec spec = ParsePatched("mistral", R"({"head_dim": 40})");
  EXPECT_EQ(spec.head_size, 40);
  EXPECT_EQ(spec.rope.rotary_dims, 40);
  EXPECT_EQ(spec.attention_scale, static_cast<float>(1.0 / std::sqrt(40.0)));
}

TEST(Families, Qwen2HasBiasesThatItsConfigDoesNotName) {
  const ModelSpec spec = Parse(GoodConfig("qwen2").dump());
  EXPECT_TRUE(spec.qkv_bias);
  EXPECT_FALSE(spec.o_bias || spec.mlp_bias || spec.qk_norm);
  EXPECT_EQ(spec.bos_id, -1);
  EXPECT_THAT(spec.eos_ids, IsEmpty());
}

TEST(Families, QwenWindow) {
  for (const char* family : {"qwen2", "qwen3"}) {
    EXPECT_THAT(ParsePatched(family, R"({"sliding_window": 8, "max_window_layers": 0})").window,
                ElementsAre(0, 0, 0));
    EXPECT_THAT(ParsePatched(family, R"({"sliding_window": 8, "max_window_layers": 1,
                                         "use_sliding_window": true})")
                    .window,
                ElementsAre(0, 8, 8));
    // Absent: from layer 28 on.
    EXPECT_THAT(ParsePatched(family, R"({"sliding_window": 8, "use_sliding_window": true})").window,
                ElementsAre(0, 0, 0));
    // layer_types wins over max_window_layers.
    EXPECT_THAT(ParsePatched(family, R"({"sliding_window": 8, "use_sliding_window": true,
                    "max_window_layers": 3, "layer_types":
                    ["sliding_attention", "full_attention", "sliding_attention"]})")
                    .window,
                ElementsAre(8, 0, 8));
  }
}

TEST(Families, Qwen3) {
  const ModelSpec spec = ParsePatched("qwen3", R"({"head_dim": null})");
  EXPECT_EQ(spec.head_size, 128);  // absent: not hidden / heads
  EXPECT_TRUE(spec.qk_norm);
  EXPECT_FALSE(spec.qkv_bias || spec.o_bias);
  const ModelSpec biased = ParsePatched("qwen3", R"({"attention_bias": true})");
  EXPECT_TRUE(biased.qkv_bias && biased.o_bias);
  EXPECT_FALSE(biased.mlp_bias);
}

TEST(Families, Prequantized) {
  EXPECT_TRUE(ParsePatched("llama", R"({"quantization_config": {"quant_method": "bitsandbytes",
      "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4"}})")
                  .prequantized);
}

TEST(Families, YarnTemperature) {
  const auto factor = [](absl::string_view extra) {
    std::string patch = R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0)";
    patch.append(extra.data(), extra.size());
    return ParsePatched("llama", patch + "}}").rope.attention_factor;
  };
  EXPECT_DOUBLE_EQ(factor(""), 0.1 * std::log(4.0) + 1.0);
  EXPECT_DOUBLE_EQ(factor(R"(, "mscale": 2.0)"), 0.1 * std::log(4.0) + 1.0);  // needs both
  EXPECT_DOUBLE_EQ(factor(R"(, "mscale": 0.5, "mscale_all_dim": 2.0)"),
                   (0.05 * std::log(4.0) + 1.0) / (0.2 * std::log(4.0) + 1.0));
  EXPECT_DOUBLE_EQ(factor(R"(, "attention_factor": 1.5)"), 1.5);
}

TEST(Families, YarnFactorFollowsFromTheLengths) {
  const RopeSpec rope = ParsePatched("llama", R"({"rope_scaling": {"rope_type": "yarn",
      "original_max_position_embeddings": 64}})")
                            .rope;
  EXPECT_EQ(rope.factor, 4.0);  // 256 / 64
  EXPECT_EQ(rope.original_max_positions, 64);
}

TEST(Families, OriginalLengthIsTheModelsWhereAbsent) {
  EXPECT_EQ(ParsePatched("llama", R"({"rope_scaling": {"rope_type": "yarn", "factor": 2}})")
                .rope.original_max_positions,
            256);
}

TEST(Families, OriginalLengthMayStandAtTheTop) {
  EXPECT_EQ(ParsePatched("llama", R"({"original_max_position_embeddings": 64,
                                      "rope_scaling": {"rope_type": "yarn", "factor": 2}})")
                .rope.original_max_positions,
            64);
}

TEST(Families, GenerationConfigAddsEosIds) {
  ModelSpec spec = ParsePatched("llama", R"({"eos_token_id": [7, 3]})");
  EXPECT_THAT(spec.eos_ids, ElementsAre(3, 7));
  ASSERT_TRUE(AddGenerationConfig(R"({"eos_token_id": [5, 7], "temperature": 0.6})",
                                  "generation_config.json", &spec)
                  .ok());
  EXPECT_THAT(spec.eos_ids, ElementsAre(3, 5, 7));
  ASSERT_TRUE(AddGenerationConfig(R"({"eos_token_id": 1})", "g", &spec).ok());
  EXPECT_THAT(spec.eos_ids, ElementsAre(1, 3, 5, 7));
  ASSERT_TRUE(AddGenerationConfig("{}", "g", &spec).ok());

  const absl::Status status = AddGenerationConfig(R"({"eos_token_id": 100})", "folder/g", &spec);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("folder/g: eos_token_id: found 100"));
  EXPECT_THAT(spec.eos_ids, ElementsAre(1, 3, 5, 7));
}

class ModelFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = ::testing::TempDir() + "/model_folder_XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  void TearDown() override { (void)Env::Default()->RemoveAll(folder_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name) << text;
  }
  std::string folder_;
};

TEST_F(ModelFolder, ReadsBothFiles) {
  Write("config.json", PatchedConfig("qwen2", R"({"eos_token_id": 9})"));
  Write("generation_config.json", R"({"eos_token_id": [9, 4]})");
  const absl::StatusOr<ModelSpec> spec = ReadModelConfig(Env::Default(), folder_);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_THAT(spec->eos_ids, ElementsAre(4, 9));
}

TEST_F(ModelFolder, GenerationConfigMayBeMissing) {
  Write("config.json", GoodConfig("qwen2").dump());
  EXPECT_TRUE(ReadModelConfig(Env::Default(), folder_).ok());
}

TEST_F(ModelFolder, ConfigMayNot) {
  const absl::Status status = ReadModelConfig(Env::Default(), folder_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
}

TEST_F(ModelFolder, BrokenGenerationConfigIsNamed) {
  Write("config.json", GoodConfig("qwen2").dump());
  Write("generation_config.json", "{");
  const absl::Status status = ReadModelConfig(Env::Default(), folder_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation_config.json"));
}

}  // namespace
}  // namespace qlora::engine
