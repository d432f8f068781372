// Models compared layer by layer on the CUDA backend, on a card or under the SIMT executor, against
// the CPU backend.

#include <cstdlib>

#include "engine/commands/evaluate.h"
#include "engine/drift/compare.h"
#include "engine/model/families.h"
#include "engine/model/load_weights.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/engine/model/golden_files.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

TEST(CudaDrift, IsTheCpusWithinRounding) {
  const std::string folder = GoldenModelPath("llama");
  ModelSpec spec = *ReadModelConfig(Env::Default(), folder);
  const ShardedModel model = *ShardedModel::Open(Env::Default(), folder);
  const quant::QuantSpec nf4{.block_size = 64};
  std::vector<std::string> warnings;
  ASSERT_TRUE(CheckCheckpoint(model, proto::Mode::QLORA, nf4, &spec, &warnings).ok());
  const Dataset data = GoldenDocuments("llama");
  const Batcher batcher(&data, EvalBatcherOptions(2, 128));
  const std::vector<ModelForm> forms = {
      {.model = &model, .compute = kernels::DType::kF32, .dense = kernels::DType::kF16},
      {.model = &model,
       .compute = kernels::DType::kF32,
       .dense = kernels::DType::kF16,
       .quant = nf4},
      {.model = &model,
       .compute = kernels::DType::kBf16,
       .dense = kernels::DType::kBf16,
       .quant = nf4}};
  const auto compare = [&](std::unique_ptr<kernels::Device> device) {
    const StreamContext context{
        .spec = &spec,
        .device = device.get(),
        .limits = {.memory_bytes = int64_t{1} << 30, .memory_source = "the test"},
        .capacity = batcher.capacity(),
        .rope_positions = data.report.longest};
    auto result = CompareModels(context, forms, data, batcher, {});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : Comparison{.models = std::vector<ModelScore>(3)};
  };
  auto cuda = kernels::cuda::CreateCudaDevice({});
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  const Comparison expected = compare(CpuDevice()), found = compare(*std::move(cuda));
  // Sums of fp32 in another order; of bf16 activations, which round to the other side now and then.
  for (const auto& [form, bound] : {std::pair{0, 1e-5}, {1, 1e-5}, {2, 5e-3}}) {
    const ModelScore &a = expected.models[form], &b = found.models[form];
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_NEAR(a.Loss(), b.Loss(), bound) << form;
    EXPECT_NEAR(a.Kl(), b.Kl(), bound) << form;
  }
}

}  // namespace
}  // namespace qlora::engine
