// The product behind the linear ops over shapes that the ops' random cases seldom hit: several
// tiles each way, depths that are cut into slabs, ranges and live counts that end inside both. What
// the ops' own tests check is checked here too.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

// Empty where the op's result is right, and the same when it runs again.
template <class OpType>
std::string Failure(const OpCase<OpType>& c) {
  auto device = cuda::CreateCudaDevice({});
  if (!device.ok()) return std::string(device.status().message());
  auto run = DeviceRun::Create(**device, *c.memory, {Op(c.op)});
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

LinearParams Params(DType x, int64_t rows, int64_t in, int64_t out) {
  LinearParams p;
  p.x = p.y = x;
  p.rows = rows;
  p.in = in;
  p.out = out;
  p.seed = uint64_t(rows * 1000003 + in * 1009 + out);
  return p;
}

class ProductTest : public ::testing::TestWithParam<DType> {};

TEST_P(ProductTest, SeveralTilesEachWay) {
  for (const auto kind : {LinearBase::Kind::kQuantized, LinearBase::Kind::kDense}) {
    LinearParams p = Params(GetParam(), 270, 192, 200);
    p.base = kind;
    p.live = 261;
    p.adapters = {{.rank = 16, .first = 3, .end = 140}, {.rank = 5, .first = 140, .end = 265}};
    EXPECT_EQ(Failure(MakeLinearForward(p)), "");
    p.accumulate = true;
    EXPECT_EQ(Failure(MakeLinearBackwardInput(p)), "");
  }
}

// 512 tokens make a slab.
TEST_P(ProductTest, AdapterGradientsOverSlabsOfTokens) {
  for (const bool accumulate : {false, true}) {
    LinearParams p = Params(GetParam(), 1300, 40, 72);
    p.adapters = {{.rank = 8}};
    p.accumulate = accumulate;
    EXPECT_EQ(Failure(MakeLinearBackwardAdapter(p)), "");
    // A range that begins inside the first slab, live rows that end inside the second: the third
    // has nothing to add.
    p.live = 700;
    p.adapters = {{.rank = 20, .first = 13, .end = 1250, .dropout = 0.25f}};
    EXPECT_EQ(Failure(MakeLinearBackwardAdapter(p)), "");
  }
}

TEST_P(ProductTest, WeightGradientsOfSeveralTiles) {
  LinearParams p = Params(GetParam(), 90, 150, 140);
  p.base = LinearBase::Kind::kDense;
  p.accumulate = true;
  p.bias = true;
  EXPECT_EQ(Failure(MakeLinearBackwardWeight(p)), "");
}

INSTANTIATE_TEST_SUITE_P(Types, ProductTest, ::testing::Values(DType::kBf16, DType::kF32),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

// More adapters than one launch takes must be refused, not left out.
TEST(ProductLimits, TooManyAdaptersAreRefused) {
  LinearParams p = Params(DType::kBf16, 40, 64, 64);
  p.adapters.assign(13, {.rank = 2});
  EXPECT_NE(Failure(MakeLinearForward(p)).find("at most 11 adapters"), std::string::npos);
}

}  // namespace
}  // namespace qlora::kernels::optest
