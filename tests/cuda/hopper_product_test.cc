// The linear op by sm_90's warpgroup products against the op's own reference and bound: tiles that
// the shapes fill and do not, live counts, adapters of every kind it takes. On a card of another
// kind there is nothing to test; the executor of the tests has the instructions.

#include "kernels/cuda/hopper_product.h"

#include <string>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

// The card, with as many multiprocessors as the choice of a tile's width shall see.
gpu::Properties Card(int multiprocessors) {
  gpu::Properties card = gpu::OpenDevice(0).value();
  if (card.name.starts_with("SIMT")) card.major = 9;
  if (multiprocessors > 0) card.multiprocessors = multiprocessors;
  return card;
}

// A packed weight moved to memory of its own, each part to the end of an allocation of whole pages:
// under the executor a read behind it ends the process, on a card compute-sanitizer names it.
class GuardedBase {
 public:
  GuardedBase(Device& device, LinearBase* base) : device_(device) {
    QuantizedTensor& q = base->quantized;
    for (ConstTensor* part : {&q.codes, &q.absmax, &q.nested_absmax, &q.offset}) Move(part);
  }

 private:
  void Move(ConstTensor* view) {
    constexpr int64_t kPage = 4096;
    if (view->Extent() == 0) return;
    const int64_t bytes = AlignUp(view->Extent(), kPage);
    std::vector<uint8_t> contents(bytes);
    uint8_t* const end = contents.data() + bytes;
    EXPECT_TRUE(device_.CopyOut(end - view->Extent(), view->data, view->Extent()).ok());
    Buffer& to = memory_.emplace_back(*device_.Allocate(bytes));
    EXPECT_TRUE(device_.CopyIn(to.data(), contents.data(), bytes).ok());
    view->data = static_cast<uint8_t*>(to.data()) + bytes - view->Extent();
  }

  Device& device_;
  std::vector<Buffer> memory_;
};

// Empty where the op's result is right, and the same when it runs again.
template <class OpType>
std::string Failure(const OpCase<OpType>& c, int multiprocessors) {
  auto device = cuda::CreateCudaDevice({});
  if (!device.ok()) return std::string(device.status().message());
  auto run = DeviceRun::Create(**device, *c.memory, {Op(c.op)});
  if (!run.ok()) return std::string(run.status().message());
  OpType op = std::get<OpType>((*run)->ops().front());
  const GuardedBase guarded(**device, &op.base);
  const gpu::Properties card = Card(multiprocessors);
  if (!cuda::IsHopperProduct(op, card)) return "not a Hopper product";
  gpu::Stream stream = gpu::CreateStream().value();
  std::vector<uint8_t> results[2];
  for (std::vector<uint8_t>& result : results) {
    if (absl::Status s = (*run)->Upload(); !s.ok()) return std::string(s.message());
    gpu::Launcher launcher(stream);
    cuda::RunHopperProduct(op, {launcher, card});
    if (!launcher.status().ok()) return std::string(launcher.status().message());
    if (absl::Status s = gpu::Synchronize(stream); !s.ok()) return std::string(s.message());
    auto downloaded = (*run)->Download();
    if (!downloaded.ok()) return std::string(downloaded.status().message());
    result = *std::move(downloaded);
  }
  gpu::DestroyStream(stream);
  const std::string difference = Difference(*c.memory, Op(c.op), Reference(c.op), results[0]);
  if (!difference.empty()) return c.name + "\n  " + difference;
  return FirstByteDifference(*c.memory, Op(c.op), results[0], results[1]);
}

LinearParams Shape(int64_t rows, int64_t in, int64_t out) {
  LinearParams p;
  p.rows = rows;
  p.in = in;
  p.out = out;
  p.seed = uint64_t(rows * 1000003 + in * 1009 + out);
  return p;
}

struct Case {
  const char* name;
  LinearParams params;
  // One makes tiles wide where rows allow it, and every block walk several tiles.
  int multiprocessors = 1;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, LinearParams p, int multiprocessors = 1) {
    cases.push_back({name, p, multiprocessors});
  };
  add("one_tile", Shape(128, 64, 128));
  add("one_row", Shape(1, 64, 8));
  add("no_row", Shape(0, 64, 128));
  add("partial", Shape(33, 192, 72));
  add("wide", Shape(300, 320, 136));
  add("narrow_by_choice", Shape(300, 192, 264), 1000);
  add("several_blocks", Shape(270, 192, 392), 3);
  LinearParams p = Shape(290, 576, 200);
  p.live = 261;
  add("live", p);
  p.live = 130;
  add("live_ends_in_first_tile", p);
  p.live = 0;
  add("nothing_live", p);
  p = Shape(140, 128, 136);
  p.adapters = {{.rank = 16, .scale = 2.0f}};
  add("adapter", p);
  p.adapters = {{.rank = 8, .scale = 1.7f}, {.rank = 72, .scale = 0.3f}, {.rank = 24, .scale = -1}};
  add("adapters_of_odd_scales", p);
  p.live = 77;
  p.rows = 300;
  add("adapters_live_wide", p);
  p = Shape(64, 256, 128);
  p.spec.double_quant = false;
  add("single_scales", p);
  p.spec.type = quant::QuantType::kFp4E2M1;
  add("fp4", p);
  p.spec.type = quant::QuantType::kFp4E3M0;
  p.spec.double_quant = true;
  add("fp4_e3m0", p);
  p.spec.type = quant::QuantType::kInt4;
  add("int4", p);
  return cases;
}

class Hopper : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (Card(1).major != 9) GTEST_SKIP() << "no card of compute capability 9";
  }
};

TEST_P(Hopper, Forward) {
  LinearParams p = GetParam().params;
  EXPECT_EQ(Failure(MakeLinearForward(p), GetParam().multiprocessors), "");
  p.bias = true;
  if (!p.adapters.empty()) p.adapters[0].dropout = 0.25f;
  EXPECT_EQ(Failure(MakeLinearForward(p), GetParam().multiprocessors), "");
}

TEST_P(Hopper, BackwardInput) {
  LinearParams p = GetParam().params;
  EXPECT_EQ(Failure(MakeLinearBackwardInput(p), GetParam().multiprocessors), "");
  p.accumulate = true;
  EXPECT_EQ(Failure(MakeLinearBackwardInput(p), GetParam().multiprocessors), "");
}

INSTANTIATE_TEST_SUITE_P(Shapes, Hopper, testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

// What it can't do it must not claim to do.
TEST(HopperLimits, SaysWhatItCannotDo) {
  gpu::Properties card;
  card.major = 9;
  const auto forward = [&](auto edit) {
    LinearParams p = Shape(20, 64, 64);
    p.adapters = {{.rank = 8, .scale = 1.0f}};
    edit(p);
    return cuda::IsHopperProduct(MakeLinearForward(p).op, card);
  };
  const auto backward = [&](auto edit) {
    LinearParams p = Shape(20, 64, 64);
    p.adapters = {{.rank = 8, .scale = 1.0f}};
    edit(p);
    return cuda::IsHopperProduct(MakeLinearBackwardInput(p).op, card);
  };
  EXPECT_TRUE(forward([](LinearParams&) {}));
  EXPECT_TRUE(backward([](LinearParams&) {}));
  EXPECT_TRUE(forward([](LinearParams& p) { p.adapters[0].dropout = 0.5f; }));
  EXPECT_FALSE(backward([](LinearParams& p) { p.adapters[0].dropout = 0.5f; }));
  EXPECT_FALSE(forward([](LinearParams& p) { p.adapters[0].scale = 0; }));
  const auto neither = [&](auto edit) { return !forward(edit) && !backward(edit); };
  EXPECT_TRUE(neither([](LinearParams& p) { p.adapters[0].first = 2, p.adapters[0].end = 9; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.adapters[0].rank = 5; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.adapters.resize(5, p.adapters[0]); }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.x = p.y = DType::kF32; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.in = 96; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.out = 60; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.spec.block_size = 128; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.base = LinearBase::Kind::kDense; }));
  EXPECT_TRUE(neither([](LinearParams& p) { p.pitched = true; }));
  for (const int major : {8, 10, 12}) {
    card.major = major;
    EXPECT_TRUE(neither([](LinearParams&) {}));
  }
}

}  // namespace
}  // namespace qlora::kernels::optest
