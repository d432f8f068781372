// What a config.json may not say. Each case changes one thing in a good config of its family; the
// message must name the key, what was found and what is allowed.
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/model/families.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/config_text.h"

namespace qlora::engine {
namespace {

using ::testing::HasSubstr;

struct BadConfig {
  const char* name;
  const char* family;
  const char* patch;  // merge patch
  const char* key;    // "key: found VALUE, allowed: ALLOWED" must stand in the message
  const char* found;
  const char* allowed;
};

class ConfigErrors : public ::testing::TestWithParam<BadConfig> {};

TEST_P(ConfigErrors, AreRefusedByName) {
  const BadConfig& bad = GetParam();
  ASSERT_TRUE(ParseModelConfig(GoodConfig(bad.family).dump(), "c").ok());
  const absl::Status status =
      ParseModelConfig(PatchedConfig(bad.family, bad.patch), "some/config.json").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("some/config.json: "));
  EXPECT_THAT(message, HasSubstr(absl::StrCat(bad.key, ": found ", bad.found, ", allowed: ")));
  EXPECT_THAT(message, HasSubstr(bad.allowed));
}

constexpr BadConfig kCases[] = {
    {"FamilyUnknown", "llama", R"({"model_type": "gemma2"})", "model_type", "\"gemma2\"",
     "\"qwen3\""},
    {"FamilyAbsent", "llama", R"({"model_type": null})", "model_type", "nothing", "\"llama\""},
    {"FamilyNoString", "llama", R"({"model_type": 3})", "model_type", "3", "a string"},
    {"ArchitectureWithoutHead", "llama", R"({"architectures": ["LlamaModel"]})", "architectures",
     "[\"LlamaModel\"]", "[\"LlamaForCausalLM\"]"},
    {"ArchitectureOfAnotherFamily", "qwen2", R"({"architectures": ["Qwen3ForCausalLM"]})",
     "architectures", "[\"Qwen3ForCausalLM\"]", "[\"Qwen2ForCausalLM\"]"},
    {"HiddenAbsent", "llama", R"({"hidden_size": null})", "hidden_size", "nothing", "an integer"},
    {"HiddenNegative", "llama", R"({"hidden_size": -64})", "hidden_size", "-64", "from 1"},
    {"HiddenHuge", "llama", R"({"hidden_size": 18446744073709551615})", "hidden_size",
     "18446744073709551615", "to 1048576"},
    {"HiddenReal", "llama", R"({"hidden_size": 64.0})", "hidden_size", "64.0", "an integer"},
    {"HiddenString", "llama", R"({"hidden_size": "64"})", "hidden_size", "\"64\"", "an integer"},
    {"HiddenNotMultipleOfHeads", "qwen2", R"({"hidden_size": 66})", "hidden_size", "66",
     "a multiple of num_attention_heads, 4"},
    {"LlamaHiddenNotMultipleEvenWithHeadDim", "llama", R"({"hidden_size": 66, "head_dim": 16})",
     "hidden_size", "66", "a multiple of num_attention_heads, 4"},
    {"LayersZero", "llama", R"({"num_hidden_layers": 0})", "num_hidden_layers", "0", "from 1"},
    {"LayersAbsent", "qwen3", R"({"num_hidden_layers": null})", "num_hidden_layers", "nothing",
     "an integer"},
    {"HeadsZero", "llama", R"({"num_attention_heads": 0})", "num_attention_heads", "0", "from 1"},
    {"KeyHeadsNotDivisor", "llama", R"({"num_key_value_heads": 3})", "num_key_value_heads", "3",
     "a divisor of num_attention_heads, 4"},
    {"KeyHeadsAboveHeads", "mistral", R"({"num_key_value_heads": 8})", "num_key_value_heads", "8",
     "a divisor"},
    {"HeadDimOdd", "mistral", R"({"head_dim": 15})", "head_dim", "15", "even"},
    {"HeadDimOddByDivision", "llama", R"({"hidden_size": 60})", "head_dim", "nothing", "is 15"},
    {"HeadDimZero", "qwen3", R"({"head_dim": 0})", "head_dim", "0", "from 1"},
    {"IntermediateAbsent", "llama", R"({"intermediate_size": null})", "intermediate_size",
     "nothing", "an integer"},
    {"VocabZero", "llama", R"({"vocab_size": 0})", "vocab_size", "0", "from 1"},
    {"PositionsZero", "llama", R"({"max_position_embeddings": 0})", "max_position_embeddings", "0",
     "from 1"},
    {"EpsilonZero", "llama", R"({"rms_norm_eps": 0})", "rms_norm_eps", "0", "above 0"},
    {"EpsilonNegative", "llama", R"({"rms_norm_eps": -1e-5})", "rms_norm_eps", "-1e-05", "above 0"},
    {"EpsilonString", "llama", R"({"rms_norm_eps": "1e-5"})", "rms_norm_eps", "\"1e-5\"",
     "a number"},
    {"InitializerRange", "llama", R"({"initializer_range": 1.5})", "initializer_range", "1.5",
     "from 0 to 1"},
    {"Activation", "llama", R"({"hidden_act": "gelu"})", "hidden_act", "\"gelu\"", "\"silu\""},
    {"TiedNoBool", "llama", R"({"tie_word_embeddings": 1})", "tie_word_embeddings", "1",
     "true or false"},
    {"Dropout", "llama", R"({"attention_dropout": 0.1})", "attention_dropout", "0.1",
     "without dropout"},
    {"Dtype", "llama", R"({"dtype": "float64"})", "dtype", "\"float64\"", "\"bfloat16\""},
    {"OldDtype", "llama", R"({"torch_dtype": "float8_e4m3fn"})", "torch_dtype", "\"float8_e4m3fn\"",
     "\"bfloat16\""},
    {"DtypesDisagree", "llama", R"({"torch_dtype": "float16", "dtype": "bfloat16"})", "torch_dtype",
     "\"float16\"", "the same as dtype, \"bfloat16\""},
    {"QuantizedGptq", "llama", R"({"quantization_config": {"quant_method": "gptq", "bits": 4}})",
     "quantization_config", "{\"bits\":4,\"quant_method\":\"gptq\"}", "\"bitsandbytes\""},
    {"QuantizedFp8", "qwen3", R"({"quantization_config": {"quant_method": "fp8"}})",
     "quantization_config", "{\"quant_method\":\"fp8\"}", "load_in_4bit"},
    {"QuantizedEightBits", "llama",
     R"({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}})",
     "quantization_config", "{\"load_in_8bit\":true,\"quant_method\":\"bitsandbytes\"}",
     "load_in_4bit"},
    {"QuantizedToBoth", "llama",
     R"({"quantization_config": {"load_in_4bit": true, "load_in_8bit": true}})",
     "quantization_config", "{\"load_in_4bit\":true,\"load_in_8bit\":true}", "load_in_4bit true"},
    {"QuantizedUnknownType", "llama",
     R"({"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "int4"}})",
     "quantization_config.bnb_4bit_quant_type", "\"int4\"", "\"nf4\" or \"fp4\""},
    {"EosBeyondVocab", "llama", R"({"eos_token_id": [2, 100]})", "eos_token_id", "[2,100]",
     "from 0 to 99"},
    {"EosNegative", "llama", R"({"eos_token_id": -1})", "eos_token_id", "-1", "from 0 to 99"},
    {"EosString", "llama", R"({"eos_token_id": "</s>"})", "eos_token_id", "\"</s>\"", "a token id"},
    {"TwoBos", "llama", R"({"bos_token_id": [1, 2]})", "bos_token_id", "[1,2]", "one token id"},
    {"LlamaWindow", "llama", R"({"sliding_window": 16})", "sliding_window", "16", "null"},
    {"LlamaLayerTypes", "llama", R"({"layer_types":
        ["full_attention", "sliding_attention", "full_attention"]})",
     "layer_types", "[\"full_attention\",\"sliding_attention\",\"full_attention\"]",
     "3 times \"full_attention\""},
    {"MistralAttentionBias", "mistral", R"({"attention_bias": true})", "attention_bias", "true",
     "mistral has no biases"},
    {"MistralWindowZero", "mistral", R"({"sliding_window": 0})", "sliding_window", "0", "from 1"},
    {"MistralMixedLayers", "mistral", R"({"sliding_window": 16, "layer_types":
        ["full_attention", "sliding_attention", "sliding_attention"]})",
     "layer_types", "[\"full_attention\",\"sliding_attention\",\"sliding_attention\"]",
     "3 times \"sliding_attention\""},
    {"QwenMlpBias", "qwen2", R"({"mlp_bias": true})", "mlp_bias", "true", "no biases"},
    {"QwenWindowNoBool", "qwen2", R"({"use_sliding_window": "yes"})", "use_sliding_window",
     "\"yes\"", "true or false"},
    {"QwenLayerTypesLength", "qwen2", R"({"layer_types": ["full_attention"]})", "layer_types",
     "[\"full_attention\"]", "a list of 3 names"},
    {"QwenLayerTypesName", "qwen3",
     R"({"layer_types": ["full_attention", "linear_attention", "full_attention"]})", "layer_types",
     "[\"full_attention\",\"linear_attention\",\"full_attention\"]", "\"sliding_attention\""},
    {"QwenSlidesWithoutWindow", "qwen3", R"({"sliding_window": 8, "layer_types":
        ["full_attention", "full_attention", "sliding_attention"]})",
     "layer_types", "[\"full_attention\",\"full_attention\",\"sliding_attention\"]",
     "only \"full_attention\""},
    // Rotary embedding.
    {"RopeThetaZero", "llama", R"({"rope_theta": 0})", "rope_theta", "0", "above 1"},
    {"RopeThetasDisagree", "llama",
     R"({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})",
     "rope_parameters.rope_theta", "500000.0", "the same as rope_theta at the top, 10000"},
    {"RopeDynamic", "llama", R"({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})",
     "rope_scaling.rope_type", "\"dynamic\"", "\"yarn\""},
    {"RopeLongrope", "llama", R"({"rope_parameters": {"rope_type": "longrope"}})",
     "rope_parameters.rope_type", "\"longrope\"", "\"yarn\""},
    {"RopeOldName", "llama", R"({"rope_scaling": {"type": "su"}})", "rope_scaling.type", "\"su\"",
     "\"yarn\""},
    {"RopeNoObject", "llama", R"({"rope_scaling": 2.0})", "rope_scaling", "2.0", "an object"},
    {"RopeUnknownKey", "qwen2", R"({"rope_scaling": {"type": "default", "mrope_section": [8]}})",
     "rope_scaling.mrope_section", "[8]", "unknown"},
    {"RopePerLayerType", "qwen3", R"({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})",
     "rope_parameters.full_attention", "{\"rope_theta\":10000.0}", "unknown"},
    {"RopePartial", "llama", R"({"partial_rotary_factor": 0.5})", "partial_rotary_factor", "0.5",
     "1.0 (this family rotates whole heads)"},
    {"RopePartialInside", "llama",
     R"({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}})",
     "rope_parameters.partial_rotary_factor", "0.75", "1.0"},
    {"RopeTypesDisagree", "llama",
     R"({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}})",
     "rope_scaling.type", "\"yarn\"", "\"linear\""},
    {"RopeDialectsDisagree", "llama", R"({"rope_scaling": {"type": "linear", "factor": 2},
        "rope_parameters": {"rope_type": "linear", "factor": 4}})",
     "rope_scaling", "{\"factor\":2,\"type\":\"linear\"}", "the same as in rope_parameters"},
    {"LinearFactorAbsent", "llama", R"({"rope_scaling": {"type": "linear"}})",
     "rope_scaling.factor", "nothing", "from 1"},
    {"LinearFactorBelowOne", "llama", R"({"rope_scaling": {"type": "linear", "factor": 0.5}})",
     "rope_scaling.factor", "0.5", "from 1"},
    {"Llama3BoundsSwapped", "llama", R"({"rope_scaling": {"rope_type": "llama3", "factor": 8,
        "low_freq_factor": 4, "high_freq_factor": 1}})",
     "rope_scaling.high_freq_factor", "1", "above low_freq_factor, 4"},
    {"Llama3BoundAbsent", "llama",
     R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "high_freq_factor": 4}})",
     "rope_scaling.low_freq_factor", "nothing", "above 0"},
    {"YarnBetasSwapped", "llama",
     R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}})",
     "rope_scaling.beta_fast", "1", "not below beta_slow, 32"},
    {"YarnAttentionFactor", "llama",
     R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "attention_factor": 0}})",
     "rope_scaling.attention_factor", "0", "above 0"},
    {"YarnOriginalZero", "llama", R"({"rope_scaling": {"rope_type": "yarn", "factor": 4,
        "original_max_position_embeddings": 0}})",
     "rope_scaling.original_max_position_embeddings", "0", "from 1"},
    {"YarnOriginalsDisagree", "llama", R"({"original_max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "yarn", "factor": 4,
                         "original_max_position_embeddings": 128}})",
     "rope_scaling.original_max_position_embeddings", "128", "the same as at the top, 64"},
};

INSTANTIATE_TEST_SUITE_P(All, ConfigErrors, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST(ConfigErrors, AllFaultsAtOnce) {
  const absl::Status status =
      ParseModelConfig(
          PatchedConfig("llama", R"({"hidden_act": "relu", "vocab_size": 0, "rope_theta": -1})"),
          "c")
          .status();
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("3 faults"));
  EXPECT_THAT(message, HasSubstr("hidden_act"));
  EXPECT_THAT(message, HasSubstr("vocab_size"));
  EXPECT_THAT(message, HasSubstr("rope_theta"));
}

TEST(ConfigErrors, TextThatIsNoObject) {
  for (const char* text : {"", "[]", "3", "{\"model_type\": \"llama\"", "null", "\xff"}) {
    const absl::Status status = ParseModelConfig(text, "folder/config.json").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("folder/config.json: ")) << text;
  }
}

}  // namespace
}  // namespace qlora::engine
