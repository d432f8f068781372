// What the 4-bit format costs, and that packing loses nothing.

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"

namespace qlora::kernels::optest {
namespace {

// Quantizes and decodes n normal numbers; the mean of |decoded − original|.
double MeanAbsoluteError(Device& device, int64_t n, const quant::QuantSpec& spec, uint64_t seed) {
  OpCase<Quantize> c = MakeQuantize({.rows = 1, .cols = n, .dtype = DType::kF32, .spec = spec});
  CountedRandom random(seed);
  const Tensor w{const_cast<void*>(c.op.w.data), DType::kF32, 1, n, n};
  FillNormal(random, w, 1.0);
  Dequantize decode;
  const QuantizedOutput& out = c.op.out;
  decode.q = {out.codes, out.absmax, out.nested_absmax, out.offset, {}, spec};
  decode.w = c.memory->NewRow(DType::kF32, n);
  auto run = *DeviceRun::Create(device, *c.memory, {c.op, decode});
  EXPECT_TRUE(run->Run().ok());
  const std::vector<uint8_t> result = *run->Download();
  const Op after = ViewsInto(*c.memory, decode, result);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += std::abs(Get(std::get<Dequantize>(after).w, 0, i) - Get(w, 0, i));
  }
  return sum / double(n);
}

// bitsandbytes' own figure for NF4 with blocks of 64 on N(0, 1), over as many samples as give a
// standard error of 0.000074 or less: the mean over a block of 64 has a deviation of about 0.0094.
TEST(Nf4, MeanAbsoluteErrorIsThatOfBitsandbytes) {
  constexpr double kMean = 0.072798, kDeviation = 0.000074;
  for (cpu::Isa isa : cpu::AvailableIsas()) {
    const auto device = *cpu::CreateCpuDevice({.threads = 2, .isa = isa});
    const double error =
        MeanAbsoluteError(*device, 1 << 20, {.block_size = 64, .double_quant = false}, 18);
    EXPECT_NEAR(error, kMean, 7 * kDeviation) << cpu::NameOf(isa);
  }
}

TEST(Pack, UnpackGivesTheBytesBack) {
  const auto device = *cpu::CreateCpuDevice({.threads = 2});
  for (int i = 0; i < OpCases<Pack>::Count(); ++i) {
    OpCase<Pack> c = OpCases<Pack>::Make(i);
    const int64_t n = c.op.rows * c.op.cols;
    Unpack unpack;
    unpack.from = c.op.from;
    unpack.from.codes = c.op.to.codes;
    unpack.from.absmax = c.op.to.absmax;
    unpack.from.nested_absmax = c.op.to.nested_absmax;
    unpack.from.offset = c.op.to.offset;
    unpack.rows = c.op.rows, unpack.cols = c.op.cols;
    const auto like = [&](const ConstTensor& t) {
      return t ? c.memory->NewRow(t.dtype, t.cols) : Tensor();
    };
    unpack.to = {like(c.op.from.codes), like(c.op.from.absmax), like(c.op.from.nested_absmax),
                 like(c.op.from.offset)};
    auto run = *DeviceRun::Create(*device, *c.memory, {c.op, unpack});
    ASSERT_TRUE(run->Run().ok());
    const std::vector<uint8_t> result = *run->Download();
    const Op after = ViewsInto(*c.memory, unpack, result);
    const QuantizedOutput& back = std::get<Unpack>(after).to;
    const auto equal = [](const ConstTensor& a, const ConstTensor& b) {
      return a.Extent() == b.Extent() && std::memcmp(a.data, b.data, a.Extent()) == 0;
    };
    if (n == 0) continue;
    EXPECT_TRUE(equal(back.codes, c.op.from.codes)) << c.name;
    EXPECT_TRUE(equal(back.absmax, c.op.from.absmax)) << c.name;
    if (!c.op.from.offset) continue;
    EXPECT_TRUE(equal(back.nested_absmax, c.op.from.nested_absmax)) << c.name;
    EXPECT_TRUE(equal(back.offset, c.op.from.offset)) << c.name;
  }
}

}  // namespace
}  // namespace qlora::kernels::optest
