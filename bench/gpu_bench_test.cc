// The GPU benchmarks under the SIMT executor, at shapes of a few hundred elements: every op is
// there, and takes its operands.

#include "bench/gpu_bench.h"

#include <set>
#include <string>

#include "benchmark/benchmark.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"

namespace qlora::bench {
namespace {

using ::testing::ElementsAreArray;
using ::testing::Gt;
using ::testing::HasSubstr;

BenchShapes SmallShapes() {
  return {.weights = {{128, 192}},
          .rows = {1, 16, 64},
          .backward_rows = 64,
          .models = {{"small", 64, 96, 4, 2, 64, 200, true}},
          .tokens = 32,
          .contexts = {32},
          .parameters = 1024,
          .chunk_rows = 16};
}
constexpr MarkSizes kSmallMarks = {
    .copy_bytes = 1 << 16, .product_rows = 32, .product_in = 64, .product_out = 64};

class GpuBenchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = kernels::cuda::CreateCudaDevice({});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }
  std::unique_ptr<kernels::Device> device_;
};

TEST(GpuCasesTest, EveryOpIsTimed) {
  std::set<std::string> expected, found;
#define QLORA_EXPECT(OpType) expected.insert(kernels::OpType::kName);
  QLORA_FOR_EACH_OP(QLORA_EXPECT)
#undef QLORA_EXPECT
  GpuOperands shapes(nullptr);
  for (const GpuCase& c : GpuCases(TrainingShapes())) {
    const kernels::Op op = c.make(shapes);
    EXPECT_THAT(c.name, HasSubstr(kernels::NameOf(op)));
    EXPECT_THAT(kernels::FlopsOf(op) + kernels::BytesOf(op), Gt(0)) << c.name;
    found.insert(kernels::NameOf(op));
  }
  EXPECT_THAT(found, ElementsAreArray(expected));
}

TEST(GpuCasesTest, NoTwoHaveOneName) {
  std::set<std::string> names;
  for (const GpuCase& c : GpuCases(TrainingShapes())) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name;
  }
}

TEST_F(GpuBenchTest, EveryCaseRunsInEveryVariant) {
  for (const GpuCase& c : GpuCases(SmallShapes())) {
    for (const kernels::LinearVariant variant : VariantsOf(*device_, c)) {
      const auto rotated = RotatedOp::Create(device_.get(), c, variant, 0);
      ASSERT_TRUE(rotated.ok()) << c.name << ": " << rotated.status();
      EXPECT_EQ((*rotated)->copies(), 1) << c.name;
      const auto seconds = (*rotated)->Run(1);
      ASSERT_TRUE(seconds.ok()) << c.name << ": " << seconds.status();
    }
  }
}

// No result may be NaN: what is timed should be what training does.
TEST_F(GpuBenchTest, ResultsAreFinite) {
  for (const GpuCase& c : GpuCases(SmallShapes())) {
    GpuOperands operands(device_.get());
    kernels::Op op = c.make(operands);
    ASSERT_TRUE(operands.status().ok()) << c.name;
    auto workspace = device_->Allocate(device_->WorkspaceBytes(op));
    ASSERT_TRUE(workspace.ok());
    SetWorkspace(&op, workspace->data(), workspace->bytes());
    ASSERT_TRUE(device_->RunOnce({op}).ok()) << c.name;
    kernels::VisitTensors(op, [&](const char* name, const auto& t) {
      if (!t || (t.dtype != kernels::DType::kF32 && t.dtype != kernels::DType::kBf16)) return;
      std::vector<uint16_t> halves(t.Extent() / 2);
      ASSERT_TRUE(device_->CopyOut(halves.data(), t.data, t.Extent()).ok());
      // The high half of an fp32 number has its exponent where bf16 has it.
      const size_t step = t.dtype == kernels::DType::kF32 ? 2 : 1;
      for (size_t i = step - 1; i < halves.size(); i += step) {
        ASSERT_NE(halves[i] & 0x7f80, 0x7f80) << c.name << " " << name << "[" << i / step << "]";
      }
    });
  }
}

TEST_F(GpuBenchTest, CopiesFillTheRotation) {
  const GpuCase product = DenseProduct(16, 64, 64);
  GpuOperands shapes(nullptr);
  const double bytes = kernels::BytesOf(product.make(shapes));
  const auto rotated = RotatedOp::Create(device_.get(), product, VariantsOf(*device_, product)[0],
                                         int64_t(3.5 * bytes));
  ASSERT_TRUE(rotated.ok());
  EXPECT_EQ((*rotated)->copies(), 4);
}

TEST_F(GpuBenchTest, MeasuresMarksAndRegistersCases) {
  const auto marks = MeasureMarks(device_.get(), kSmallMarks);
  ASSERT_TRUE(marks.ok()) << marks.status();
  EXPECT_THAT(marks->product_flops_per_second, Gt(0));
  EXPECT_THAT(marks->card.copy_bytes_per_second, Gt(0));
  EXPECT_THAT(marks->card.l2_bytes, Gt(0));
  const GpuCase small = {"small_copy", [](GpuOperands& o) -> kernels::Op {
                           return kernels::AddGradient{
                               .from = o.Random(kernels::DType::kF32, 1, 64, 1),
                               .into = o.Zeros(kernels::DType::kF32, 1, 64)};
                         }};
  RegisterGpu(device_.get(), *marks, {small});
  EXPECT_EQ(benchmark::RunSpecifiedBenchmarks("^small_copy"), 1u);
}

TEST(GpuLimitsTest, CountsWhatIsTaken) {
  auto device = kernels::cuda::CreateCudaDevice({});
  ASSERT_TRUE(device.ok());
  const auto before = GpuBytesInUse();
  ASSERT_TRUE(before.ok());
  const auto buffer = (*device)->Allocate(1 << 20);
  ASSERT_TRUE(buffer.ok());
  const auto after = GpuBytesInUse();
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(*after - *before, 1 << 20);
}

}  // namespace
}  // namespace qlora::bench
