#include "engine/drift/weight_error.h"

#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "quant/reference_quantizer.h"

namespace qlora::engine {
namespace {

// n numbers and their 4-bit copy.
struct Quantized {
  Quantized(const quant::QuantSpec& spec, int64_t n)
      : spec(spec),
        w(n),
        codes(spec.CodeBytes(n)),
        absmax_u8(spec.BlockCount(n)),
        absmax_f32(spec.BlockCount(n)),
        nested(spec.GroupCount(n) + 1) {
    for (int64_t i = 0; i < n; ++i) w[i] = std::sin(float(i) * 0.37f) * (1 + float(i % 5));
  }
  void Quantize() {
    const quant::QuantizedView view{.codes = codes.data(),
                                    .absmax_f32 = absmax_f32.data(),
                                    .absmax_u8 = absmax_u8.data(),
                                    .nested_absmax = nested.data(),
                                    .nested_offset = &offset};
    ASSERT_TRUE(quant::QuantizeReference(w.data(), int64_t(w.size()), spec, view).ok());
    q = quant::AsConst(spec, view);
    read.resize(w.size());
    quant::DequantizeReference(q, int64_t(w.size()), read.data());
  }
  WeightError Measure(double factor = 3, int threads = 1) const {
    return MeasureWeightError(kernels::DType::kF32, reinterpret_cast<const uint8_t*>(w.data()),
                              int64_t(w.size()), q, {factor, threads});
  }

  quant::QuantSpec spec;
  std::vector<float> w, read;
  std::vector<uint8_t> codes, absmax_u8;
  std::vector<float> absmax_f32, nested;
  float offset = 0;
  quant::ConstQuantizedView q;
};

TEST(WeightError, IsTheNaiveOne) {
  for (const bool double_quant : {false, true}) {
    // Several groups of 256 blocks, the last block short.
    Quantized data({.block_size = 32, .double_quant = double_quant}, 32 * 256 * 3 + 77);
    data.Quantize();
    double signal = 0, noise = 0, absolute = 0, most = 0;
    for (size_t i = 0; i < data.w.size(); ++i) {
      const double e = std::fabs(double(data.read[i]) - data.w[i]);
      signal += double(data.w[i]) * data.w[i], noise += e * e, absolute += e;
      most = std::max(most, e);
    }
    const WeightError found = data.Measure();
    const double ulps = 1e-12;
    EXPECT_NEAR(found.signal, signal, signal * ulps);
    EXPECT_NEAR(found.noise, noise, noise * ulps);
    EXPECT_NEAR(found.sum_absolute, absolute, absolute * ulps);
    EXPECT_EQ(found.max_absolute, most);
    EXPECT_NEAR(found.SnrDb(), 10 * std::log10(signal / noise), 1e-9);
    EXPECT_EQ(found.blocks, 32 * 256 * 3 / 32 + 3);
    EXPECT_EQ(found.elements, int64_t(data.w.size()));
    const int64_t n = int64_t(data.w.size()), blocks = found.blocks;
    EXPECT_EQ(found.bytes,
              (n + 1) / 2 + (double_quant ? blocks + 4 * ((blocks + 255) / 256) + 4 : 4 * blocks));
    const WeightError many = data.Measure(3, 4);
    EXPECT_EQ(many.noise, found.noise);
    EXPECT_EQ(many.signal, found.signal);
  }
}

TEST(WeightError, AnyRangeReadsAsTheWhole) {
  for (const bool double_quant : {false, true}) {
    Quantized data({.block_size = 32, .double_quant = double_quant}, 32 * 300 + 7);
    data.Quantize();
    // Odd, inside a block, across blocks, behind the first group of 256, at the end.
    for (const auto& [begin, count] :
         {std::pair{0, 1}, {5, 20}, {31, 70}, {32 * 255 + 3, 100}, {32 * 300 - 1, 8}}) {
      std::vector<float> part(count);
      DequantizeRange(data.q, begin, count, part.data());
      EXPECT_EQ(std::memcmp(part.data(), data.read.data() + begin, count * sizeof(float)), 0)
          << begin;
    }
  }
}

TEST(WeightError, OfWhatFourBitsHoldIsNone) {
  Quantized data({.block_size = 64, .double_quant = false}, 640);
  for (size_t i = 0; i < data.w.size(); ++i) {
    data.w[i] = 2 * quant::CodeValues(quant::QuantType::kNf4)[i % 16];
  }
  data.Quantize();
  EXPECT_EQ(data.Measure().noise, 0);
  EXPECT_TRUE(std::isinf(data.Measure().SnrDb()));
  EXPECT_EQ(data.Measure().outlier_blocks, 0);
}

TEST(WeightError, OutlierBlocksAreThoseOverTheFactor) {
  Quantized data({.block_size = 64, .double_quant = false}, 64 * 20);
  for (const int block : {3, 17}) data.w[block * 64 + 5] = 200;  // the others' steps become coarse
  data.Quantize();
  EXPECT_EQ(data.Measure(3).outlier_blocks, 2);
  EXPECT_EQ(data.Measure(1e6).outlier_blocks, 0);
}

}  // namespace
}  // namespace qlora::engine
