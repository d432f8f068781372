#include "engine/io/adapter_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/safetensors_writer.h"
#include "tests/engine/io/golden_tensors.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/support/faulty_env.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tests::FaultyEnv;
using tests::TempFolder;
using Json = nlohmann::json;

const std::string kGolden = tests::TestsDir() + "/golden/io/peft_adapter";

std::string ReadFile(Env* env, const std::string& path) {
  return env->ReadFile(path, 1 << 20).value_or("(none)");
}

// Two modules of rank 2 with borrowed bytes.
struct Sample {
  tests::OwnedTensor a0 = tests::Filled({"a0", Dtype::kBF16, {2, 3}});
  tests::OwnedTensor b0 = tests::Filled({"b0", Dtype::kBF16, {5, 2}});
  tests::OwnedTensor a1 = tests::Filled({"a1", Dtype::kBF16, {2, 4}});
  tests::OwnedTensor b1 = tests::Filled({"b1", Dtype::kBF16, {1, 2}});
  std::vector<ExpectedModule> expected = {{"model.layers.1.mlp.up_proj", 4, 1},
                                          {"model.layers.0.self_attn.q_proj", 3, 5}};

  static absl::Span<const uint8_t> Bytes(const tests::OwnedTensor& tensor) {
    return {reinterpret_cast<const uint8_t*>(tensor.bytes.data()), tensor.bytes.size()};
  }
  AdapterTensors adapter() const {
    AdapterTensors adapter;
    adapter.config = {"org/base", 2, 16, 0.05, false, {"up_proj", "q_proj"}, ""};
    adapter.modules = {{expected[1].path, 3, 5, Dtype::kBF16, Bytes(a0), Bytes(b0)},
                       {expected[0].path, 4, 1, Dtype::kBF16, Bytes(a1), Bytes(b1)}};
    return adapter;
  }
};

TEST(AdapterFileTest, RoundTrip) {
  const Sample sample;
  FaultyEnv env;
  ASSERT_TRUE(WriteAdapter(&env, ".", sample.adapter()).ok());
  auto loaded = ReadAdapter(&env, ".", sample.expected);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const AdapterConfig& config = loaded->adapter.config;
  EXPECT_EQ(config.base_model_name_or_path, "org/base");
  EXPECT_EQ(config.r, 2);
  EXPECT_EQ(config.lora_alpha, 16);
  EXPECT_EQ(config.lora_dropout, 0.05);
  EXPECT_FALSE(config.use_rslora);
  EXPECT_THAT(config.target_modules, ElementsAre("q_proj", "up_proj"));
  ASSERT_EQ(loaded->adapter.modules.size(), 2u);
  const AdapterModule& first = loaded->adapter.modules[0];  // in the order expected
  EXPECT_EQ(first.path, "model.layers.1.mlp.up_proj");
  EXPECT_EQ(first.dtype, Dtype::kBF16);
  EXPECT_EQ(std::string(first.a.begin(), first.a.end()), sample.a1.bytes);
  EXPECT_EQ(std::string(first.b.begin(), first.b.end()), sample.b1.bytes);
  auto all = ReadAdapter(&env, ".", {});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->adapter.modules[0].path, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(all->adapter.modules[0].in, 3);
  EXPECT_EQ(all->adapter.modules[0].out, 5);
}

TEST(AdapterFileTest, WritesIntoACommit) {
  const Sample sample;
  FaultyEnv env;
  auto commit = FolderCommit::Begin(&env, ".", "checkpoint-1");
  ASSERT_TRUE(commit.ok());
  ASSERT_TRUE(WriteAdapter([&](const std::string& name) { return (*commit)->NewFile(name); },
                           sample.adapter())
                  .ok());
  ASSERT_TRUE((*commit)->Commit({1, 1, ""}).ok());
  EXPECT_TRUE(ReadAdapter(&env, "./checkpoint-1", sample.expected).ok());
}

TEST(AdapterFileTest, ReadsAndRewritesPeftsOwn) {
  auto loaded = ReadAdapter(Env::Default(), kGolden, {});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->adapter.config.r, 2);
  EXPECT_EQ(loaded->adapter.config.lora_alpha, 4);
  ASSERT_EQ(loaded->adapter.modules.size(), 2u);
  EXPECT_EQ(loaded->adapter.modules[0].path, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(loaded->adapter.modules[1].path, "model.layers.0.self_attn.v_proj");
  EXPECT_EQ(loaded->adapter.modules[1].out, 4);
  EXPECT_EQ(loaded->adapter.modules[1].dtype, Dtype::kF32);
  FaultyEnv env;
  ASSERT_TRUE(WriteAdapter(&env, ".", loaded->adapter).ok());
  EXPECT_EQ(ReadFile(&env, kAdapterModelFile),
            ReadFile(Env::Default(), JoinPath(kGolden, kAdapterModelFile)));
}

TEST(AdapterFileTest, ConfigAgreesWithPefts) {
  Json theirs = Json::parse(ReadFile(Env::Default(), JoinPath(kGolden, kAdapterConfigFile)));
  // PEFT keeps them in a set, whose order differs from run to run.
  std::sort(theirs["target_modules"].begin(), theirs["target_modules"].end());
  AdapterConfig config = {"", 2, 4, 0.05, false, {"v_proj", "q_proj"}, ""};
  const std::string text = AdapterConfigJson(config);
  Json ours = Json::parse(text);
  EXPECT_EQ(text, ours.dump(2) + "\n");  // sorted, indented by 2
  EXPECT_EQ(ours["base_model_name_or_path"], "");
  ours["base_model_name_or_path"] = nullptr;
  for (const auto& [key, value] : ours.items()) {
    ASSERT_TRUE(theirs.contains(key)) << key;
    EXPECT_EQ(value.dump(), theirs[key].dump()) << key;
  }
  // What this leaves out is null or false in PEFT's: older versions don't know those keys.
  for (const auto& [key, value] : theirs.items()) {
    EXPECT_TRUE(ours.contains(key) || value.is_null() || value == Json(false)) << key;
  }
}

TEST(AdapterFileTest, ConfigNumbers) {
  EXPECT_THAT(
      AdapterConfigJson({"b", 8, 16, 0, true, {"x"}, ""}),
      ::testing::AllOf(HasSubstr("\"lora_alpha\": 16,"), HasSubstr("\"lora_dropout\": 0.0,"),
                       HasSubstr("\"use_rslora\": true"), HasSubstr("\"r\": 8,")));
  EXPECT_THAT(AdapterConfigJson({"b", 8, 22.5, 0, true, {}, ".*q_proj"}),
              ::testing::AllOf(HasSubstr("\"lora_alpha\": 22.5,"),
                               HasSubstr("\"target_modules\": \".*q_proj\"")));
}

TEST(AdapterFileTest, MissingUnexpectedAndMisshapenAreNamedTogether) {
  const Sample sample;
  FaultyEnv env;
  ASSERT_TRUE(WriteAdapter(&env, ".", sample.adapter()).ok());
  const auto status =
      ReadAdapter(
          &env, ".",
          {{{"model.layers.0.self_attn.q_proj", 3, 6}, {"model.layers.0.self_attn.k_proj", 3, 5}}})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("missing: base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight, "
                        "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"));
  EXPECT_THAT(status.message(),
              HasSubstr("unexpected: base_model.model.model.layers.1.mlp.up_proj.lora_"));
  EXPECT_THAT(status.message(), HasSubstr("q_proj.lora_B.weight is BF16 [5, 2], needed is [6, 2]"));
}

TEST(AdapterFileTest, TensorsOfOtherKindsAreRefused) {
  const auto read = [](std::vector<TensorSpec> specs) {
    FaultyEnv env;
    std::vector<tests::OwnedTensor> owned;
    for (const TensorSpec& spec : specs) owned.push_back(tests::Filled(spec));
    EXPECT_TRUE(WriteSafetensors(&env, kAdapterModelFile, tests::AsData(owned)).ok());
    EXPECT_TRUE(
        AtomicWriteFile(&env, kAdapterConfigFile, AdapterConfigJson({"b", 2, 4, 0, false, {}, ""}))
            .ok());
    return std::string(ReadAdapter(&env, ".", {}).status().message());
  };
  const TensorSpec a = {"base_model.model.m.lora_A.weight", Dtype::kF32, {2, 3}};
  const TensorSpec b = {"base_model.model.m.lora_B.weight", Dtype::kF32, {5, 2}};
  const auto named = [](std::string name) {
    return TensorSpec{std::move(name), Dtype::kF32, {5, 2}};
  };
  EXPECT_EQ(read({a, b}), "");
  EXPECT_THAT(read({a}), HasSubstr("missing: base_model.model.m.lora_B.weight"));
  EXPECT_THAT(read({b}), HasSubstr("missing: base_model.model.m.lora_A.weight"));
  EXPECT_THAT(read({}), HasSubstr("holds no tensor"));
  EXPECT_THAT(read({a, b, named("base_model.model.m.lora_magnitude_vector")}), HasSubstr("DoRA"));
  EXPECT_THAT(read({a, b, named("base_model.model.m.lora_B.bias")}), HasSubstr("a bias"));
  EXPECT_THAT(read({a, b, named("base_model.model.e.lora_embedding_A")}), HasSubstr("embedding"));
  EXPECT_THAT(read({a, b, named("m.lora_A.weight")}), HasSubstr("no LoRA matrices"));
  EXPECT_THAT(read({a, b, named("base_model.model..lora_A.weight")}), HasSubstr("lora_A"));
  EXPECT_THAT(read({{a.name, Dtype::kF32, {3, 3}}, b}), HasSubstr("needed is [2, 3]"));
  EXPECT_THAT(read({{a.name, Dtype::kF32, {6}}, b}), HasSubstr("no LoRA matrices"));
  EXPECT_THAT(read({{a.name, Dtype::kBF16, {2, 3}}, b}), HasSubstr("but"));
  EXPECT_THAT(read({{a.name, Dtype::kI32, {2, 3}}, b}), HasSubstr("supported are BF16"));
}

TEST(AdapterFileTest, BadAdaptersAreNotWritten) {
  const Sample sample;
  const auto write = [](const AdapterTensors& adapter) {
    FaultyEnv env;
    const auto status = WriteAdapter(&env, ".", adapter);
    EXPECT_TRUE(env.List(".")->empty());
    return status.code();
  };
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  AdapterTensors adapter = sample.adapter();
  adapter.modules[1].path = adapter.modules[0].path;
  EXPECT_EQ(write(adapter), kBad);
  adapter = sample.adapter();
  adapter.modules[0].in = 4;
  EXPECT_EQ(write(adapter), kBad);
  adapter = sample.adapter();
  adapter.config.r = 3;
  EXPECT_EQ(write(adapter), kBad);
  adapter = sample.adapter();
  adapter.modules[0].dtype = Dtype::kF16;
  EXPECT_EQ(write(adapter), kBad);
  adapter.modules.clear();
  EXPECT_EQ(write(adapter), kBad);
}

struct Refused {
  const char* patch;    // merged into a good config
  const char* message;  // part of it
};

class AdapterConfigTest : public ::testing::TestWithParam<Refused> {};

TEST_P(AdapterConfigTest, IsRefusedWithTheReason) {
  FaultyEnv env;
  Json json = Json::parse(AdapterConfigJson({"b", 2, 4, 0.1, false, {"q_proj"}, ""}));
  ASSERT_TRUE(AtomicWriteFile(&env, kAdapterConfigFile, json.dump()).ok());
  ASSERT_TRUE(ReadAdapterConfig(&env, ".").ok());
  json.update(Json::parse(GetParam().patch));
  ASSERT_TRUE(AtomicWriteFile(&env, kAdapterConfigFile, json.dump()).ok());
  const auto status = ReadAdapterConfig(&env, ".").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, AdapterConfigTest,
    ::testing::Values(Refused{R"({"peft_type":"IA3"})", "peft_type"},
                      Refused{R"({"peft_type":null})", "peft_type"},
                      Refused{R"({"use_dora":true})", "DoRA"}, Refused{R"({"bias":"all"})", "bias"},
                      Refused{R"({"lora_bias":true})", "lora_bias"},
                      Refused{R"({"modules_to_save":["lm_head"]})", "modules_to_save"},
                      Refused{R"({"rank_pattern":{"q_proj":4}})", "rank_pattern"},
                      Refused{R"({"alpha_pattern":{"q_proj":4}})", "alpha_pattern"},
                      Refused{R"({"layer_replication":[[0,2]]})", "layer_replication"},
                      Refused{R"({"fan_in_fan_out":true})", "fan_in_fan_out"},
                      Refused{R"({"use_qalora":true})", "use_qalora"},
                      Refused{R"({"use_bdlora":{"x":1}})", "use_bdlora"},
                      Refused{R"({"trainable_token_indices":[1]})", "trainable_token_indices"},
                      Refused{R"({"target_parameters":["x"]})", "target_parameters"},
                      Refused{R"({"alora_invocation_tokens":[1]})", "aLoRA"},
                      Refused{R"({"init_lora_weights":"pissa"})", "init_lora_weights"},
                      Refused{R"({"init_lora_weights":"olora"})", "init_lora_weights"},
                      Refused{R"({"r":0})", "r is 0"}, Refused{R"({"r":2.5})", "r is 2.5"},
                      Refused{R"({"r":"8"})", "r is"}, Refused{R"({"r":16385})", "16384"},
                      Refused{R"({"r":18446744073709551615})", "r is"},
                      Refused{R"({"lora_alpha":null})", "lora_alpha"},
                      Refused{R"({"lora_dropout":1.0})", "lora_dropout"},
                      Refused{R"({"lora_dropout":-0.1})", "lora_dropout"},
                      Refused{R"({"use_rslora":"yes"})", "use_rslora"},
                      Refused{R"({"target_modules":null})", "target_modules"},
                      Refused{R"({"target_modules":[1]})", "target_modules"}));

TEST(AdapterConfigReadTest, TheMinimumThatPeftTakesIsEnough) {
  FaultyEnv env;
  ASSERT_TRUE(AtomicWriteFile(&env, kAdapterConfigFile,
                              R"({"peft_type":"LORA","r":8,"lora_alpha":16.5,
                                  "init_lora_weights":"gaussian","some_new_key":[1],
                                  "target_modules":".*proj"})")
                  .ok());
  auto config = ReadAdapterConfig(&env, ".");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->r, 8);
  EXPECT_EQ(config->lora_alpha, 16.5);
  EXPECT_EQ(config->lora_dropout, 0);
  EXPECT_EQ(config->target_pattern, ".*proj");
  ASSERT_TRUE(AtomicWriteFile(&env, kAdapterConfigFile, "[]").ok());
  EXPECT_FALSE(ReadAdapterConfig(&env, ".").ok());
}

}  // namespace
}  // namespace qlora::engine
