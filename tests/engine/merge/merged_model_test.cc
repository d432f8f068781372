#include "engine/merge/merged_model.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"
#include "engine/model/element_convert.h"
#include "gmock/gmock.h"
#include "proto/exit_codes.h"
#include "tests/engine/model/loading_fixture.h"
#include "tests/engine/run/model_run.h"
#include "tests/support/counted_random.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

// A golden model, and an adapter of rank 3 with drawn values on every linear of its layers.
class MergedModelTest : public testing::Test {
 protected:
  MergedModelTest() : model_(EditableModel("qwen2").Save(base_)), spec_(SpecOf(base_.path())) {
    adapter_ = {.r = 3, .lora_alpha = 4.5, .use_rslora = true};
    for (const WeightRow& row : WeightRows(spec_)) {
      if (!row.lora_target) continue;
      adapter_.modules[row.module] = {
          .in = row.cols, .out = row.rows, .a = Draw(3 * row.cols), .b = Draw(row.rows * 3)};
    }
  }

  std::vector<float> Draw(int64_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = float(0.4 * random_.Uniform() - 0.2);
    return values;
  }

  absl::Status Write(int64_t max_shard_bytes = int64_t{1} << 40) {
    StoredWeights base(model_);
    const auto device = CpuDevice(2);
    return WriteMergedModel(
        Env::Default(), {model_, spec_, adapter_, base}, {.max_shard_bytes = max_shard_bytes},
        [&](const std::string& name) { return NewAtomicFile(Env::Default(), merged_.File(name)); },
        device.get());
  }

  ShardedModel Merged() {
    auto model = ShardedModel::Open(Env::Default(), merged_.path());
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  kernels::optest::CountedRandom random_{11};
  tests::TempFolder base_, merged_;
  ShardedModel model_;
  ModelSpec spec_;
  AdapterWeights adapter_;
};

std::vector<float> Floats(const ShardedModel::Tensor& tensor) {
  std::vector<float> values(tensor.info->elements());
  EXPECT_EQ(ConvertElements(*FloatType(tensor.info->dtype), tensor.data(), int64_t(values.size()),
                            kernels::DType::kF32, values.data()),
            -1);
  return values;
}

// Against fp64: the product's error and the sum's, then half an ulp of the stored type.
TEST_F(MergedModelTest, AddsTheScaledProductToEveryAdaptedLinear) {
  ASSERT_TRUE(Write().ok());
  const ShardedModel merged = Merged();
  ASSERT_EQ(merged.Names(), model_.Names());
  const double scale = 4.5 / std::sqrt(3.0);
  for (const auto& [path, module] : adapter_.modules) {
    const auto before = model_.Get(path + ".weight"), after = merged.Get(path + ".weight");
    ASSERT_TRUE(before.ok() && after.ok());
    ASSERT_EQ(after->info->dtype, before->info->dtype);
    ASSERT_EQ(after->info->shape, before->info->shape);
    const std::vector<float> w = Floats(*before), found = Floats(*after);
    const std::vector<float>&a = module.a, &b = module.b;
    const double half_ulp = before->info->dtype == Dtype::kF32 ? 0x1p-24 : 0x1p-8;
    for (int64_t n = 0; n < module.out; ++n) {
      for (int64_t k = 0; k < module.in; ++k) {
        double delta = 0, size = 0;
        for (int64_t i = 0; i < 3; ++i) {
          delta += double(b[n * 3 + i]) * a[i * module.in + k];
          size += std::fabs(double(b[n * 3 + i]) * a[i * module.in + k]);
        }
        const double wanted = w[n * module.in + k] + scale * delta;
        const double bound =
            half_ulp * std::fabs(wanted) + 6 * 0x1p-24 * (scale * size + std::fabs(wanted));
        ASSERT_NEAR(found[n * module.in + k], wanted, bound) << path << " " << n << " " << k;
      }
    }
  }
}

TEST_F(MergedModelTest, WhatIsNotAdaptedKeepsItsBytes) {
  std::erase_if(adapter_.modules, [](const auto& m) { return !absl::EndsWith(m.first, "v_proj"); });
  ASSERT_TRUE(Write().ok());
  const ShardedModel merged = Merged();
  int64_t changed = 0;
  for (const std::string& name : model_.Names()) {
    const bool same = model_.Get(name)->bytes() == merged.Get(name)->bytes();
    EXPECT_EQ(same, !absl::EndsWith(name, "v_proj.weight")) << name;
    changed += !same;
  }
  EXPECT_EQ(changed, spec_.layers);
}

TEST_F(MergedModelTest, ShardsHoldWhatTheIndexSays) {
  ASSERT_TRUE(Write().ok());
  std::map<std::string, std::string> whole;
  {
    const ShardedModel merged = Merged();
    for (const std::string& name : merged.Names()) {
      const auto bytes = merged.Get(name)->bytes();
      whole[name] = std::string(bytes.begin(), bytes.end());
    }
  }
  std::filesystem::remove(merged_.File("model.safetensors"));
  ASSERT_TRUE(Write(20'000).ok());
  const ShardedModel merged = Merged();
  EXPECT_GT(merged.files().size(), 2u);
  EXPECT_EQ(merged.Names(), model_.Names());
  for (const auto& [name, bytes] : whole) {
    const auto found = merged.Get(name)->bytes();
    EXPECT_TRUE(std::string(found.begin(), found.end()) == bytes) << name;
  }
  for (const SafetensorsFile& file : merged.files()) {
    int64_t bytes = 0;
    for (const TensorInfo& info : file.tensors()) bytes += info.bytes;
    EXPECT_TRUE(bytes <= 20'000 || file.tensors().size() == 1) << file.path();
  }
}

TEST_F(MergedModelTest, ConfigLosesTheQuantization) {
  auto config = nlohmann::json::parse(GoldenModelText("qwen2/config.json"));
  const auto before = config;
  config["quantization_config"] = {{"quant_method", "bitsandbytes"}};
  ASSERT_TRUE(base_.Write("config.json", config.dump()).ok());
  ASSERT_TRUE(Write().ok());
  const auto text = Env::Default()->ReadFile(merged_.File("config.json"), 1 << 20);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(nlohmann::json::parse(*text), before);
}

TEST_F(MergedModelTest, WhatTheStoredTypeCannotHoldIsNamed) {
  auto& [path, module] = *adapter_.modules.begin();
  module.a[0] = module.b[0] = std::sqrt(std::numeric_limits<float>::max());
  const absl::Status status = Write();
  EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitBadData);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path + ".weight, element 0 is "));
}

}  // namespace
}  // namespace qlora::engine
