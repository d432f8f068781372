// The forward linear for few rows: shapes that the op's random cases seldom hit. What the op's own
// test checks is checked here too: bounds, untouched bytes, equal second run.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/linear_skinny.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

// Empty where the op takes the path for few rows and its result is right.
std::string Failure(const LinearParams& params) {
  const OpCase<LinearForward> c = MakeLinearForward(params);
  auto device = cuda::CreateCudaDevice({});
  if (!device.ok()) return std::string(device.status().message());
  auto run = DeviceRun::Create(**device, *c.memory, {Op(c.op)});
  if (!run.ok()) return std::string(run.status().message());
  if (!cuda::IsSkinny(std::get<LinearForward>((*run)->ops().front()))) return "not skinny";
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

LinearParams Params(int64_t rows, int64_t in, int64_t out) {
  LinearParams p;
  p.rows = rows;
  p.in = in;
  p.out = out;
  p.seed = uint64_t(rows * 1000003 + in * 1009 + out);
  return p;
}

TEST(SkinnyTest, MatchesTheReferenceOverShapes) {
  for (int64_t rows : {1, 3, 8, 9, 16}) {
    for (int64_t in : {64, 128, 320, 1024, 2176}) {
      for (int64_t out : {1, 40, 96}) EXPECT_EQ(Failure(Params(rows, in, out)), "");
    }
  }
}

TEST(SkinnyTest, HoldsAcrossTypesOfCodesAndScales) {
  for (quant::QuantType type : {quant::QuantType::kNf4, quant::QuantType::kFp4E2M1,
                                quant::QuantType::kFp4E3M0, quant::QuantType::kInt4}) {
    for (bool double_quant : {false, true}) {
      LinearParams p = Params(5, 512, 200);
      p.spec.type = type;
      p.spec.double_quant = double_quant;
      p.y = double_quant ? DType::kBf16 : DType::kF32;
      EXPECT_EQ(Failure(p), "");
    }
  }
}

TEST(SkinnyTest, AddsBiasAndAdapters) {
  for (int64_t rows : {1, 7, 16}) {
    for (int64_t rank : {1, 8, 40}) {
      LinearParams p = Params(rows, 256, 72);
      p.bias = true;
      p.bias_type = rank == 8 ? DType::kF32 : DType::kF16;
      p.adapters = {{.rank = rank, .scale = 1.7f}};
      EXPECT_EQ(Failure(p), "");
      p.bias = false;
      p.y = DType::kF32;
      p.adapters = {{.rank = rank, .first = 0, .end = rows / 2},
                    {.rank = 8, .first = rows / 3, .end = rows, .scale = -0.5f},
                    {.rank = 3, .first = rows, .end = rows}};
      EXPECT_EQ(Failure(p), "");
    }
  }
}

TEST(SkinnyTest, LeavesRowsBehindTheLiveOnesAlone) {
  for (int64_t live : {0, 1, 7, 11, 16}) {
    LinearParams p = Params(16, 448, 65);
    p.live = live;
    p.bias = true;
    p.adapters = {{.rank = 16}, {.rank = 4, .first = 5, .end = 13}};
    EXPECT_EQ(Failure(p), "");
  }
}

TEST(SkinnyTest, IsForFewBf16RowsOverBlocksOf64WithoutDropout) {
  const auto is_skinny = [](const LinearParams& p) {
    return cuda::IsSkinny(MakeLinearForward(p).op);
  };
  EXPECT_TRUE(is_skinny(Params(16, 128, 8)));
  EXPECT_FALSE(is_skinny(Params(17, 128, 8)));
  EXPECT_FALSE(is_skinny(Params(16, 96, 8)));
  LinearParams p = Params(4, 128, 8);
  p.x = DType::kF32;
  EXPECT_FALSE(is_skinny(p));
  p = Params(4, 128, 8);
  p.spec.block_size = 128;
  EXPECT_FALSE(is_skinny(p));
  p = Params(4, 128, 8);
  p.base = LinearBase::Kind::kDense;
  EXPECT_FALSE(is_skinny(p));
  p = Params(4, 128, 8);
  p.adapters = {{.rank = 8, .dropout = 0.1f}};
  EXPECT_FALSE(is_skinny(p));
  p.adapters.assign(5, {.rank = 8});
  EXPECT_FALSE(is_skinny(p));
}

}  // namespace
}  // namespace qlora::kernels::optest
