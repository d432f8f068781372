// Gradients of all weights in mode FULL against differences of the loss, tensor by tensor: the
// embedding (tied or not), norms, biases and every linear.

#include <cmath>

#include "engine/model/load_weights.h"
#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

class FullGradient : public testing::TestWithParam<const char*> {
 protected:
  FullGradient() : data_(GoldenDocuments(GetParam())) {}

  double Loss(ModelRun* run, absl::Span<const float> weights) {
    const std::vector<Parameter>& parameters = run->storage().space.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& p = parameters[i];
      EXPECT_TRUE(
          WriteTrained(&run->execution(), int64_t(i), weights.subspan(p.offset, p.rows * p.cols))
              .ok());
    }
    const EvalPieces& eval = *run->plan().run.eval;
    const Batcher batcher(&data_, {.rows_per_micro_batch = 3, .shuffle = false});
    const MicroBatch batch = batcher.Step(0).front();
    const std::vector<uint8_t> inputs = EncodeBatch(eval.inputs, batch.inputs(), {});
    EXPECT_TRUE(run->execution().Write(eval.inputs.live_tokens, inputs.data(), inputs.size()).ok());
    EXPECT_TRUE(run->execution().Run(eval.forward).ok());
    return run->Values<double>(eval.loss.loss)[0];
  }

  Dataset data_;
};

// Along its own gradient a tensor changes the loss at the rate of the gradient's norm.
TEST_P(FullGradient, IsTheSlopeOfTheLoss) {
  RecordOptions record = TrainingOptions(GetParam(), data_, 3, 1);
  record.storage.mode = proto::Mode::FULL;
  record.storage.lora = {};
  record.storage.compute = kernels::DType::kF32;
  record.eval = record.train;
  ModelRun run({.model = GetParam(), .record = record}, CpuDevice());
  const std::vector<float> start = run.Values<float>(run.storage().windows[0].master);
  RunSteps(&run, data_, 3, 1, 1);
  const std::vector<float> gradient = run.Values<float>(run.storage().gradient);

  for (const Parameter& p : run.storage().space.parameters()) {
    const int64_t n = p.rows * p.cols;
    double norm = 0;
    for (int64_t i = 0; i < n; ++i) norm += std::pow(double(gradient[p.offset + i]), 2);
    norm = std::sqrt(norm);
    ASSERT_GT(norm, 1e-2) << p.name;
    // Steps that change the loss (about 200) by some 0.1: five digits above its rounding in fp32.
    const double step = 0.05 / norm;
    double loss[2];
    for (int side = 0; side < 2; ++side) {
      std::vector<float> moved = start;
      for (int64_t i = 0; i < n; ++i) {
        moved[p.offset + i] += float((side ? step : -step) * gradient[p.offset + i] / norm);
      }
      loss[side] = Loss(&run, moved);
    }
    EXPECT_NEAR((loss[1] - loss[0]) / (2 * step), norm, 0.01 * norm) << p.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FullGradient,
                         testing::Values("llama", "llama3_tied", "llama_bias", "mistral",
                                         "qwen2_window", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora::engine
