// Whole forward passes against Transformers: every family, documents packed in one batch.

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

struct Evaluated {
  std::vector<float> logits, row_loss;
  double loss_sum = 0;
};

class GoldenModel : public testing::TestWithParam<const char*> {
 protected:
  std::string name() const { return GetParam(); }

  ModelRun Make(const Dataset& data, int64_t rows) {
    RecordOptions record;
    record.storage.mode = proto::Mode::LORA;
    record.storage.compute = kernels::DType::kF32;
    record.storage.training = false;
    record.storage.rope_positions = data.report.longest;
    record.eval = Batcher(&data, {.rows_per_micro_batch = rows, .shuffle = false}).capacity();
    record.eval_logits = true;
    return ModelRun({.model = name(), .record = record}, CpuDevice());
  }

  // All documents, `rows` of them in a batch.
  Evaluated Evaluate(int64_t rows) {
    const Dataset data = GoldenDocuments(name());
    ModelRun run = Make(data, rows);
    const Batcher batcher(&data, {.rows_per_micro_batch = rows, .shuffle = false});
    const EvalPieces& eval = *run.plan().run.eval;
    Evaluated all;
    for (int64_t i = 0; i < batcher.StepsOf(1); ++i) {
      const MicroBatch batch = batcher.Step(i).front();
      const std::vector<uint8_t> inputs = EncodeBatch(eval.inputs, batch.inputs(), {});
      EXPECT_TRUE(
          run.execution().Write(eval.inputs.live_tokens, inputs.data(), inputs.size()).ok());
      EXPECT_TRUE(run.execution().Run(eval.forward).ok());
      const auto logits = run.Values<float>(eval.logits);
      const auto losses = run.Values<float>(eval.loss.row_loss);
      all.logits.insert(all.logits.end(), logits.begin(),
                        logits.begin() + batch.ids.size() * eval.logits.cols);
      all.row_loss.insert(all.row_loss.end(), losses.begin(), losses.begin() + batch.rows.size());
      all.loss_sum += run.Values<double>(eval.loss.loss)[0];
    }
    return all;
  }
};

TEST_P(GoldenModel, PackedDocumentsHaveTransformersLogitsAndLoss) {
  const auto file =
      SafetensorsFile::Open(Env::Default(), GoldenModelPath(name() + "/expected.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto logits = TensorValues<float>(*file, "logits");
  const auto nll = TensorValues<float>(*file, "nll");
  const Evaluated found = Evaluate(3);
  ASSERT_EQ(found.logits.size(), logits.size());
  double worst = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    worst = std::max(worst, std::abs(double(logits[i]) - found.logits[i]));
  }
  EXPECT_LE(worst, 1e-4);
  size_t row = 0;
  double sum = 0;
  for (const float expected : nll) {
    if (expected == 0) continue;
    ASSERT_LT(row, found.row_loss.size());
    EXPECT_NEAR(found.row_loss[row], expected, 1e-4) << "row " << row;
    sum += expected;
    ++row;
  }
  EXPECT_EQ(row, found.row_loss.size());
  EXPECT_NEAR(found.loss_sum, sum, 1e-3);
}

// What a document is packed with changes nothing of it: not even a bit.
TEST_P(GoldenModel, PackedDocumentsEqualSeparateOnes) {
  const Evaluated packed = Evaluate(3), apart = Evaluate(1);
  EXPECT_EQ(packed.logits, apart.logits);
  EXPECT_EQ(packed.row_loss, apart.row_loss);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenModel,
                         testing::Values("llama", "llama3_tied", "llama_bias", "llama_linear",
                                         "llama_yarn", "mistral", "qwen2", "qwen2_window", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora::engine
