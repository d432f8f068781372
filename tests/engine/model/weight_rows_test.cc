#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/model/families.h"
#include "engine/model/model_spec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/dynamic_map.h"
#include "quant/float_formats.h"
#include "quant/reference_quantizer.h"
#include "tests/engine/model/config_text.h"
#include "tests/engine/model/golden_files.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;

ModelSpec SpecOf(const std::string& folder) {
  const auto spec = ReadModelConfig(Env::Default(), GoldenModelPath(folder));
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *spec;
}

const char* const kGoldenModels[] = {"llama",        "llama3_tied",  "llama_bias",
                                     "llama_linear", "llama_yarn",   "mistral",
                                     "qwen2",        "qwen2_window", "qwen3"};

// Names, shapes and type that Transformers gives the tensors of each family.
TEST(WeightRows, AreTheTensorsOfTheCheckpoint) {
  for (const std::string folder : kGoldenModels) {
    SCOPED_TRACE(folder);
    const ModelSpec spec = SpecOf(folder);
    const auto file =
        SafetensorsFile::Open(Env::Default(), GoldenModelPath(folder + "/model.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    const Dtype stored = spec.stored_dtype == kernels::DType::kF32    ? Dtype::kF32
                         : spec.stored_dtype == kernels::DType::kBf16 ? Dtype::kBF16
                                                                      : Dtype::kF16;
    int64_t elements = 0;
    for (const WeightRow& row : WeightRows(spec)) {
      const TensorInfo* tensor = file->Find(row.name);
      ASSERT_NE(tensor, nullptr) << row.name;
      if (row.rows == 1) {
        EXPECT_THAT(tensor->shape, ElementsAre(row.cols)) << row.name;
      } else {
        EXPECT_THAT(tensor->shape, ElementsAre(row.rows, row.cols)) << row.name;
      }
      EXPECT_EQ(tensor->dtype, stored) << row.name;
      elements += row.Count();
    }
    EXPECT_EQ(WeightRows(spec).size(), file->tensors().size());
    EXPECT_EQ(ParameterCount(spec), elements);
  }
}

TEST(WeightRows, Order) {
  const auto spec = ParseModelConfig(
      PatchedConfig("qwen3", R"({"attention_bias": true, "num_hidden_layers": 1})"), "c");
  ASSERT_TRUE(spec.ok());
  std::vector<std::string> names;
  for (const WeightRow& row : WeightRows(*spec)) names.push_back(row.name);
  const std::string l = "model.layers.0.";
  EXPECT_THAT(names, ElementsAre("model.embed_tokens.weight", l + "input_layernorm.weight",
                                 l + "self_attn.q_proj.weight", l + "self_attn.q_proj.bias",
                                 l + "self_attn.k_proj.weight", l + "self_attn.k_proj.bias",
                                 l + "self_attn.v_proj.weight", l + "self_attn.v_proj.bias",
                                 l + "self_attn.q_norm.weight", l + "self_attn.k_norm.weight",
                                 l + "self_attn.o_proj.weight", l + "self_attn.o_proj.bias",
                                 l + "post_attention_layernorm.weight", l + "mlp.gate_proj.weight",
                                 l + "mlp.up_proj.weight", l + "mlp.down_proj.weight",
                                 "model.norm.weight", "lm_head.weight"));
}

TEST(WeightRows, RolesAscendWithinALayerAndModulesAreNamesWithoutTensor) {
  for (const std::string folder : kGoldenModels) {
    SCOPED_TRACE(folder);
    std::set<std::string> names;
    int64_t layer = -1;
    WeightRole role = WeightRole::kEmbedding;
    for (const WeightRow& row : WeightRows(SpecOf(folder))) {
      EXPECT_TRUE(names.insert(row.name).second) << row.name;
      EXPECT_TRUE(row.name == row.module + ".weight" || row.name == row.module + ".bias");
      if (row.layer > layer) {
        layer = row.layer;
      } else {
        EXPECT_TRUE(row.role > role || row.role == WeightRole::kEmbedding) << row.name;
        EXPECT_TRUE(row.layer == layer || row.layer == -1) << row.name;
      }
      role = row.role;
    }
  }
}

TEST(WeightRows, OnlyLinearsOfLayersAreQuantizedAndAdapted) {
  std::map<std::string, int> seen;
  for (const WeightRow& row : WeightRows(SpecOf("llama_bias"))) {
    EXPECT_EQ(row.quantizable, row.lora_target) << row.name;
    if (row.quantizable) {
      EXPECT_GE(row.layer, 0);
      ++seen[row.name.substr(row.name.find('.', std::string("model.layers.").size()) + 1)];
    }
  }
  EXPECT_EQ(seen, (std::map<std::string, int>{{"mlp.down_proj.weight", 2},
                                              {"mlp.gate_proj.weight", 2},
                                              {"mlp.up_proj.weight", 2},
                                              {"self_attn.k_proj.weight", 2},
                                              {"self_attn.o_proj.weight", 2},
                                              {"self_attn.q_proj.weight", 2},
                                              {"self_attn.v_proj.weight", 2}}));
}

TEST(WeightRows, TiedModelsHaveNoHead) {
  const auto has_head = [](const ModelSpec& spec) {
    const std::vector<WeightRow> rows = WeightRows(spec);
    return std::any_of(rows.begin(), rows.end(),
                       [](const WeightRow& row) { return row.role == WeightRole::kHead; });
  };
  EXPECT_FALSE(has_head(SpecOf("llama3_tied")));
  EXPECT_TRUE(has_head(SpecOf("llama")));
}

// The golden QLoRA steps stand on weights quantized by the generator: they must be the weights that
// the reference quantizer makes of the same checkpoint, or the steps prove nothing about us.
TEST(GoldenQuantization, EqualsTheReferenceQuantizer) {
  const quant::QuantSpec quant_spec;
  const std::pair<std::string, std::string> cases[] = {{"qlora_llama", "llama3_tied"},
                                                       {"qlora_qwen3", "qwen3"}};
  for (const auto& [folder, base] : cases) {
    SCOPED_TRACE(folder);
    const auto model =
        SafetensorsFile::Open(Env::Default(), GoldenModelPath(base + "/model.safetensors"));
    const auto golden =
        SafetensorsFile::Open(Env::Default(), GoldenModelPath(folder + "/expected.safetensors"));
    ASSERT_TRUE(model.ok() && golden.ok());
    int compared = 0;
    for (const WeightRow& row : WeightRows(SpecOf(base))) {
      if (!row.quantizable) continue;
      std::vector<float> weights;
      for (const uint16_t bits : TensorValues<uint16_t>(*model, row.name)) {
        weights.push_back(quant::F32FromBf16(bits));
      }
      const int64_t n = row.Count();
      std::vector<uint8_t> codes(quant_spec.CodeBytes(n)), absmax(quant_spec.BlockCount(n));
      std::vector<float> nested(quant_spec.GroupCount(n)), offset(1);
      ASSERT_TRUE(quant::QuantizeReference(weights.data(), n, quant_spec,
                                           {.codes = codes.data(),
                                            .absmax_u8 = absmax.data(),
                                            .nested_absmax = nested.data(),
                                            .nested_offset = offset.data()})
                      .ok());
      const std::string key = "quant." + row.module;
      EXPECT_EQ(codes, TensorValues<uint8_t>(*golden, key + ".codes")) << key;
      EXPECT_EQ(absmax, TensorValues<uint8_t>(*golden, key + ".absmax")) << key;
      EXPECT_EQ(nested, TensorValues<float>(*golden, key + ".nested_absmax")) << key;
      EXPECT_EQ(offset, TensorValues<float>(*golden, key + ".nested_offset")) << key;
      ++compared;
    }
    EXPECT_EQ(compared, 14);
  }
}

}  // namespace
}  // namespace qlora::engine
