// The linear op by the vendor's dense product: every way in which operands are put beside each
// other, against the ops' own reference and bound.

#include "kernels/cuda/linear_dequantized.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/dense_matmul.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

std::unique_ptr<Device> Cuda() { return *cuda::CreateCudaDevice({}); }

// Empty where the op's result is right, and the same when it runs again.
template <class OpType>
std::string Failure(OpCase<OpType> c) {
  c.op.variant = LinearVariant::kDequantized;
  if (!cuda::IsDequantizable(c.op)) return "not dequantizable";
  auto device = Cuda();
  c.op.workspace = c.memory->NewRow(DType::kU8, device->WorkspaceBytes(Op(c.op)));
  auto run = DeviceRun::Create(*device, *c.memory, {Op(c.op)});
  if (!run.ok()) return std::string(run.status().message());
  std::vector<uint8_t> results[2];
  for (std::vector<uint8_t>& result : results) {
    if (absl::Status s = (*run)->Upload(); !s.ok()) return std::string(s.message());
    if (absl::Status s = (*run)->Run(); !s.ok()) return std::string(s.message());
    auto downloaded = (*run)->Download();
    if (!downloaded.ok()) return std::string(downloaded.status().message());
    result = *std::move(downloaded);
  }
  const std::string difference = Difference(*c.memory, Op(c.op), Reference(c.op), results[0]);
  if (!difference.empty()) return c.name + "\n  " + difference;
  return FirstByteDifference(*c.memory, Op(c.op), results[0], results[1]);
}

struct Case {
  const char* name;
  LinearParams params;
};

LinearParams Shape(int64_t rows, int64_t in, int64_t out) {
  LinearParams p;
  p.rows = rows;
  p.in = in;
  p.out = out;
  p.seed = uint64_t(rows * 1000003 + in * 1009 + out);
  return p;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, LinearParams p) { cases.push_back({name, p}); };
  add("plain", Shape(33, 128, 72));
  add("one_row", Shape(1, 64, 8));
  LinearParams p = Shape(40, 192, 64);
  p.adapters = {{.rank = 16, .scale = 2.0f}};
  add("adapter", p);
  p.adapters = {
      {.rank = 5, .scale = 0.25f}, {.rank = 8, .scale = 1.0f}, {.rank = 24, .scale = 4.0f}};
  add("adapters_of_odd_ranks", p);
  p.spec.double_quant = false;
  p.spec.block_size = 128;
  add("single_scales", p);
  p.spec.type = quant::QuantType::kFp4E2M1;
  p.pitched = false;
  add("fp4", p);
  p = Shape(21, 72, 40);  // blocks run across rows
  p.adapters = {{.rank = 3, .scale = 1.0f}};
  add("blocks_across_rows", p);
  p = Shape(17, 64, 48);
  p.base = LinearBase::Kind::kDense;
  add("dense", p);
  p.adapters = {{.rank = 8, .scale = 0.5f}};
  add("dense_with_adapter", p);
  return cases;
}

int64_t TailOf(const LinearParams& p) {
  int64_t ranks = 0;
  for (const LinearParams::Adapter& adapter : p.adapters) ranks += adapter.rank;
  return (ranks + 15) / 16 * 16;
}

class Dequantized : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!gpu::LoadDenseMatmul().ok()) GTEST_SKIP() << gpu::LoadDenseMatmul();
  }
};

TEST_P(Dequantized, Forward) {
  LinearParams p = GetParam().params;
  for (const int64_t tail : {int64_t{0}, TailOf(p)}) {
    p.tail = tail;
    p.bias = false;
    EXPECT_EQ(Failure(MakeLinearForward(p)), "");
    p.bias = true;
    EXPECT_EQ(Failure(MakeLinearForward(p)), "");
    if (tail == 0 || p.adapters.empty()) continue;
    p.adapters[0].dropout = 0.25f;
    EXPECT_EQ(Failure(MakeLinearForward(p)), "");
  }
}

TEST_P(Dequantized, BackwardInput) {
  LinearParams p = GetParam().params;
  for (const int64_t tail : {int64_t{0}, TailOf(p)}) {
    p.tail = tail;
    p.accumulate = false;
    EXPECT_EQ(Failure(MakeLinearBackwardInput(p)), "");
    p.accumulate = true;
    EXPECT_EQ(Failure(MakeLinearBackwardInput(p)), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Dequantized, testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

// With room behind the activations nothing that grows with their rows is copied anywhere.
TEST(DequantizedTail, LeavesNoRoomForACopy) {
  const auto workspace = [](int64_t rows, bool tail, auto make) {
    LinearParams p = Shape(rows, 128, 64);
    p.adapters = {{.rank = 4, .scale = 1.0f}};
    if (tail) p.tail = TailOf(p);
    auto op = make(p).op;
    op.variant = LinearVariant::kDequantized;
    auto device = Cuda();
    EXPECT_EQ(device->TailColumns(op), 16);
    return device->WorkspaceBytes(op);
  };
  EXPECT_EQ(workspace(1, true, MakeLinearForward), workspace(500, true, MakeLinearForward));
  EXPECT_EQ(workspace(1, true, MakeLinearBackwardInput),
            workspace(500, true, MakeLinearBackwardInput));
  EXPECT_GE(workspace(500, false, MakeLinearForward),
            workspace(500, true, MakeLinearForward) + 500 * (128 + 16) * 2);
  EXPECT_GE(workspace(500, false, MakeLinearBackwardInput),
            workspace(500, true, MakeLinearBackwardInput) + 500 * (64 + 16) * 2);
}

// A tail that lies elsewhere is an error of ours, and said.
TEST(DequantizedTail, MustLieBehind) {
  LinearParams p = Shape(20, 64, 64);
  p.adapters = {{.rank = 4, .scale = 1.0f}};
  p.tail = TailOf(p) + 8;
  auto c = MakeLinearForward(p);
  c.op.tail = Slice(c.op.tail, 0, 20, 8, 16);
  EXPECT_THAT(Failure(c), testing::HasSubstr("not behind its activation"));
  c.op.tail = c.memory->New(DType::kBf16, 20, 16);
  EXPECT_THAT(Failure(c), testing::HasSubstr("not behind its activation"));
}

// What it can't do exactly it must not claim to do.
TEST(DequantizedLimits, SaysWhatItCannotDo) {
  const auto forward = [](auto edit) {
    LinearParams p = Shape(20, 64, 64);
    p.adapters = {{.rank = 4, .scale = 1.0f}};
    edit(p);
    return cuda::IsDequantizable(MakeLinearForward(p).op);
  };
  EXPECT_TRUE(forward([](LinearParams&) {}));
  EXPECT_FALSE(forward([](LinearParams& p) { p.adapters[0].scale = 1.5f; }));
  EXPECT_FALSE(forward([](LinearParams& p) { p.adapters[0].first = 2, p.adapters[0].end = 9; }));
  EXPECT_FALSE(forward([](LinearParams& p) { p.x = p.y = DType::kF32; }));
  EXPECT_FALSE(forward([](LinearParams& p) { p.in = 60; }));
  EXPECT_FALSE(forward([](LinearParams& p) { p.out = 60; }));
  EXPECT_FALSE(forward([](LinearParams& p) { p.bias = true, p.bias_type = DType::kF32; }));
  LinearParams p = Shape(20, 64, 64);
  p.adapters = {{.rank = 4, .scale = 1.0f, .dropout = 0.5f}};
  EXPECT_FALSE(cuda::IsDequantizable(MakeLinearBackwardInput(p).op));
}

}  // namespace
}  // namespace qlora::kernels::optest
