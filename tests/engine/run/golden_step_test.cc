// QLoRA training steps against PEFT and PyTorch's AdamW.

#include <cmath>

#include "engine/model/families.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

struct Case {
  const char* name;
  const char* base;
  bool rslora;
};

class GoldenStep : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto file = SafetensorsFile::Open(
        Env::Default(), GoldenModelPath(std::string(GetParam().name) + "/expected.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    expected_.emplace(*std::move(file));
    data_ = GoldenDocuments(GetParam().name);
  }

  ModelRun Make() {
    RecordOptions record = TrainingOptions(GetParam().base, data_, 2, 2);
    const ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath(GetParam().base));
    record.storage.lora = {AllLinears(spec, 4, 8, GetParam().rslora)};
    record.storage.compute = kernels::DType::kF32;
    record.storage.weight_decay = 0.01f;
    return ModelRun({.model = GetParam().base,
                     .adapter = std::string(GetParam().name) + "/adapter",
                     .record = record},
                    CpuDevice());
  }

  // `f(key, parameter's name)` for both matrices of every adapter.
  void ForEachParameter(const ModelRun& run, auto&& f) {
    ASSERT_EQ(run.storage().adapters.front().size(), 14u);
    for (const auto& parameter : run.storage().space.parameters()) {
      f("base_model.model." + parameter.name, parameter.name);
    }
  }

  static double Largest(const std::vector<float>& values) {
    double largest = 0;
    for (const float v : values) largest = std::max(largest, std::abs(double(v)));
    return largest;
  }

  std::optional<SafetensorsFile> expected_;
  Dataset data_;
};

TEST_P(GoldenStep, QuantizesTheLinearsAsTheReference) {
  ModelRun run = Make();
  int64_t quantized = 0;
  for (const WeightSlot& slot : run.storage().weights) {
    if (!slot.row.quantizable) continue;
    const std::string key = "quant." + slot.row.module;
    EXPECT_EQ(run.Values<uint8_t>(slot.quantized.codes),
              TensorValues<uint8_t>(*expected_, key + ".codes"));
    EXPECT_EQ(run.Values<uint8_t>(slot.quantized.absmax),
              TensorValues<uint8_t>(*expected_, key + ".absmax"));
    EXPECT_EQ(run.Values<float>(slot.quantized.nested_absmax),
              TensorValues<float>(*expected_, key + ".nested_absmax"));
    EXPECT_EQ(run.Values<float>(slot.quantized.offset),
              TensorValues<float>(*expected_, key + ".nested_offset"));
    ++quantized;
  }
  EXPECT_EQ(quantized, 14);
}

// Gradients are sums until the update divides them by the batch's 38 trained tokens.
TEST_P(GoldenStep, GradientsOfAllAdapters) {
  ModelRun run = Make();
  RunSteps(&run, data_, 2, 2, 1);
  ForEachParameter(run, [&](const std::string& key, const std::string& name) {
    const auto expected = TensorValues<float>(*expected_, "grad." + key);
    const auto found = run.Parameter(name, run.storage().gradient);
    ASSERT_EQ(found.size(), expected.size()) << key;
    const double bound = 1e-3 * Largest(expected);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(found[i] / 38.0, expected[i], bound) << key << " element " << i;
    }
  });
}

TEST_P(GoldenStep, LossesAndNormsOfThreeSteps) {
  ModelRun run = Make();
  const std::vector<StepResult> steps = RunSteps(&run, data_, 2, 2, 3);
  const auto losses = TensorValues<float>(*expected_, "losses");
  const auto norms = TensorValues<float>(*expected_, "grad_norms");
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(steps[i].trained_tokens, 38);
    EXPECT_FALSE(steps[i].skipped);
    EXPECT_NEAR(steps[i].loss_sum / 38, losses[i], 1e-4 * losses[i]) << "step " << i;
    EXPECT_NEAR(steps[i].gradient_norm, norms[i], 1e-3 * norms[i]) << "step " << i;
  }
}

TEST_P(GoldenStep, WeightsAfterThreeSteps) {
  ModelRun run = Make();
  RunSteps(&run, data_, 2, 2, 3);
  int64_t compared = 0, excepted = 0;
  ForEachParameter(run, [&](const std::string& key, const std::string& name) {
    const auto expected = TensorValues<float>(*expected_, "step3." + key);
    const auto gradient = TensorValues<float>(*expected_, "grad." + key);
    const auto found = run.Parameter(name, run.storage().windows[0].master);
    ASSERT_EQ(found.size(), expected.size()) << key;
    const double small = 1e-3 * Largest(gradient);
    for (size_t i = 0; i < expected.size(); ++i) {
      // AdamW divides by the gradient's own size: where that is rounding noise, its sign may
      // differ.
      const bool is_noise = std::abs(gradient[i]) < small;
      const double bound = is_noise ? 3 * 2 * 1e-3 : 2e-5;
      EXPECT_NEAR(found[i], expected[i], bound) << key << " element " << i;
      ++compared;
      excepted += is_noise;
    }
  });
  EXPECT_LT(excepted, compared / 20) << "the exception must stay one";
}

// AdamW's first steps hardly show the scale of gradients, so clipping shows in the moments:
// after one step m = 0.1 · gradient · min(1, 0.3 / norm).
TEST_P(GoldenStep, ClippingScalesTheMoments) {
  ModelRun run = Make();
  const StepResult step = RunSteps(&run, data_, 2, 2, 1).front();
  ASSERT_GT(step.gradient_norm, 0.3);
  const double scale = 0.1 * 0.3 / TensorValues<float>(*expected_, "grad_norms")[0];
  ForEachParameter(run, [&](const std::string& key, const std::string& name) {
    const auto gradient = TensorValues<float>(*expected_, "grad." + key);
    const auto m = run.Parameter(name, run.storage().windows[0].m);
    const double bound = 2e-3 * scale * Largest(gradient);
    for (size_t i = 0; i < m.size(); ++i) {
      EXPECT_NEAR(m[i], scale * gradient[i], bound) << key << " element " << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Peft, GoldenStep,
                         testing::Values(Case{"qlora_llama", "llama3_tied", false},
                                         Case{"qlora_qwen3", "qwen3", true}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::engine
