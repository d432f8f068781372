// The norm that makes adapters' first products along: its other outputs are those of the norm
// alone, bit for bit; its products are the sums that are written down, of the normed rows as
// stored.

#include "kernels/cuda/rms_norm_products.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

std::string BytesOf(const ConstTensor& t) {
  std::string bytes;
  for (int64_t r = 0; t && r < t.rows; ++r) {
    bytes.append(reinterpret_cast<const char*>(t.Row<uint8_t>(0)) + r * t.pitch * SizeOf(t.dtype),
                 t.cols * SizeOf(t.dtype));
  }
  return bytes;
}

class NormProducts : public testing::Test {
 protected:
  NormProducts() : device_(*cuda::CreateCudaDevice({})), card_(*gpu::OpenDevice(0)) {}

  // What an op leaves of a case's memory.
  std::vector<uint8_t> Run(const OperandMemory& memory, const RmsNormForward& op) {
    auto run = DeviceRun::Create(*device_, memory, {Op(op)});
    EXPECT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(cuda::IsNormWithProducts(std::get<RmsNormForward>((*run)->ops().front()), card_),
              !op.products.empty());
    EXPECT_TRUE((*run)->Run().ok());
    return *(*run)->Download();
  }
  static RmsNormForward Left(const OperandMemory& memory, const RmsNormForward& op,
                             const std::vector<uint8_t>& image) {
    return std::get<RmsNormForward>(ViewsInto(memory, Op(op), image));
  }

  void Check(const RowParams& p) {
    const OpCase<RmsNormForward> c = MakeRmsNormForward(p);
    SCOPED_TRACE(c.name);
    const std::vector<uint8_t> along_image = Run(*c.memory, c.op);
    EXPECT_EQ(Difference(*c.memory, Op(c.op), Reference(c.op), along_image), "");
    EXPECT_EQ(FirstByteDifference(*c.memory, Op(c.op), along_image, Run(*c.memory, c.op)), "");

    RmsNormForward alone_op = c.op;
    alone_op.products.clear();
    const std::vector<uint8_t> alone_image = Run(*c.memory, alone_op);
    const RmsNormForward along = Left(*c.memory, c.op, along_image);
    const RmsNormForward alone = Left(*c.memory, alone_op, alone_image);
    EXPECT_TRUE(BytesOf(along.y) == BytesOf(alone.y));
    EXPECT_TRUE(BytesOf(along.sum) == BytesOf(alone.sum));
    EXPECT_TRUE(BytesOf(along.rstd) == BytesOf(alone.rstd));

    // The reference above allows for y's rounding; here y is what was stored.
    const int64_t live = LiveCount(c.op.live_rows, p.rows);
    for (const FirstProduct& product : along.products) {
      Expectation expectation;
      ExpectFirstProduct(Computed(Matrix(along.y, live)), product, live, p.dtype, expectation);
      const Expected& e = expectation.front();
      for (int64_t t = 0; t < p.rows; ++t) {
        for (int64_t r = 0; r < product.low.cols; ++r) {
          if (e.rule[e.Index(t, r)] == Expected::Rule::kUntouched) continue;
          ASSERT_NEAR(Get(product.low, t, r), e.Value(t, r), e.bound[e.Index(t, r)])
              << "row " << t << ", rank " << r;
        }
      }
    }
  }

  const std::unique_ptr<Device> device_;
  const gpu::Properties card_;
};

RowParams Params(int64_t rows, int64_t cols) {
  RowParams p;
  p.rows = rows;
  p.cols = cols;
  p.seed = uint64_t(rows * 1000003 + cols);
  p.residual = rows % 2 == 1;
  p.products = {{.rank = 16}, {.rank = 3}};
  return p;
}

TEST_F(NormProducts, HoldOverShapes) {
  // About the edges of a step (32), of rows that a warp has alone (512) and of its 8 sums (2048).
  for (const int64_t cols : {8, 24, 32, 40, 504, 512, 520, 1024, 2040, 2056}) {
    for (const int64_t rows : {1, 16, 17}) Check(Params(rows, cols));
  }
}

// So long that the card has room for 8 rows only.
TEST_F(NormProducts, HoldInTilesOfEightRows) {
  int64_t cols = 1024;
  while (cuda::NormTileOf(cols, card_).rows == 16) cols += 8;
  ASSERT_EQ(cuda::NormTileOf(cols, card_).rows, 8);
  Check(Params(9, cols));
}

TEST_F(NormProducts, HoldForRanksAndTypesOfWeights) {
  for (const int64_t rank : {1, 8, 15, 17, 24, 48}) {
    RowParams p = Params(19, 136);
    p.products = {{.rank = rank}};
    p.weight = rank % 2 == 0 ? DType::kF32 : DType::kF16;
    p.weight_offset = 1.0f;
    Check(p);
  }
}

TEST_F(NormProducts, HoldWithDropoutAndRangesOfRows) {
  for (const float dropout : {0.0f, 0.05f, 0.5f}) {
    RowParams p = Params(41, 200);
    p.products = {{.rank = 8, .first = 0, .end = 11, .dropout = dropout},
                  {.rank = 4, .first = 11, .end = 11, .dropout = dropout},
                  {.rank = 17, .first = 11, .end = 38, .dropout = dropout},
                  {.rank = 2, .first = 38, .end = 41}};
    for (const int64_t live : {kAllLive, int64_t{0}, int64_t{30}}) {
      p.live = live;
      Check(p);
    }
  }
}

// One by one or together, of all rows or of some: the same bytes.
TEST_F(NormProducts, DependOnTheirRowsAlone) {
  RowParams p = Params(37, 648);
  p.products = {{.rank = 16}, {.rank = 5}, {.rank = 20}};
  const OpCase<RmsNormForward> c = MakeRmsNormForward(p);
  const std::vector<uint8_t> all = Run(*c.memory, c.op);
  constexpr int64_t kFirst = 3, kRows = 21;
  const auto cut = [](const auto& view) {
    auto rows = view;
    if (!view) return rows;
    rows.data = const_cast<uint8_t*>(view.template Row<uint8_t>(0)) +
                kFirst * view.pitch * SizeOf(view.dtype);
    rows.rows = kRows;
    return rows;
  };
  for (const FirstProduct& product : c.op.products) {
    RmsNormForward op = c.op;
    op.x = cut(op.x), op.residual = cut(op.residual), op.sum = cut(op.sum);
    op.y = cut(op.y), op.rstd = cut(op.rstd);
    op.products = {product};
    op.products[0].low = cut(product.low);
    const std::vector<uint8_t> some = Run(*c.memory, op);
    EXPECT_TRUE(BytesOf(Left(*c.memory, op, some).products[0].low) ==
                BytesOf(Left(*c.memory, op, all).products[0].low));
  }
}

}  // namespace
}  // namespace qlora::kernels::optest
