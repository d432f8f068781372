// The worked example of quant/NF4.md, number for number.

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "quant/dynamic_map.h"
#include "quant/reference_quantizer.h"
#include "tests/quant/quantized_tensor.h"

namespace qlora::quant {
namespace {

std::vector<float> Weights() {
  std::vector<float> w(67, 0.0f);
  w[0] = 0.5f;
  w[1] = -0.25f;
  w[2] = 0.125f;
  w[3] = -0.0625f;
  w[4] = 0.375f;
  w[32] = 1.0f;
  w[33] = -0.75f;
  w[34] = 0.3f;
  w[64] = -0.2f;
  w[65] = 0.1f;
  w[66] = 0.05f;
  return w;
}

std::vector<uint8_t> Codes() {
  std::vector<uint8_t> codes(34, 0x77);
  codes[0] = 0xf2;
  codes[1] = 0xa6;
  codes[2] = 0xe7;
  codes[16] = 0xf1;
  codes[17] = 0xb7;
  codes[32] = 0x0c;
  codes[33] = 0xa7;
  codes.push_back(QuantizedTensor::kByteSentinel);
  return codes;
}

struct Row {
  int element;
  int code;
  float plain;
  float doubled;
};
constexpr std::array<Row, 7> kRows = {{{0, 15, 0.5f, 0.502005219f},
                                       {1, 2, -0.262536526f, -0.263589412f},
                                       {3, 6, -0.0455250181f, -0.0457075946f},
                                       {5, 7, 0.0f, 0.0f},
                                       {33, 1, -0.696192801f, -0.696192801f},
                                       {64, 0, -0.200000003f, -0.197317719f},
                                       {66, 10, 0.0492224619f, 0.0485623181f}}};

TEST(WorkedExample, WithFp32Scales) {
  QuantizedTensor q({.block_size = 32, .double_quant = false}, 67);
  ASSERT_TRUE(q.Quantize(Weights()).ok());
  EXPECT_EQ(q.codes, Codes());
  EXPECT_EQ(q.absmax_f32[0], 0.5f);
  EXPECT_EQ(q.absmax_f32[1], 1.0f);
  EXPECT_EQ(q.absmax_f32[2], 0.2f);
  const std::vector<float> restored = q.Dequantize();
  for (const Row& row : kRows) {
    EXPECT_EQ(CodeAt(q.codes.data(), row.element), row.code) << row.element;
    EXPECT_EQ(restored[row.element], row.plain) << row.element;
  }
}

TEST(WorkedExample, DoubleQuantized) {
  QuantizedTensor q({.block_size = 32}, 67);
  ASSERT_TRUE(q.Quantize(Weights()).ok());
  EXPECT_EQ(q.codes, Codes());
  EXPECT_EQ(q.offset, 0.566666663f);
  EXPECT_EQ(q.nested_absmax[0], 0.433333337f);
  EXPECT_EQ(q.absmax_u8[0], 0x3c);
  EXPECT_EQ(q.absmax_u8[1], 0xff);
  EXPECT_EQ(q.absmax_u8[2], 0x0a);
  EXPECT_EQ(SignedDynamicMap()[60], -0.149218753f);
  EXPECT_EQ(SignedDynamicMap()[10], -0.852343738f);
  const ConstQuantizedView view = AsConst(q.spec, q.View());
  EXPECT_EQ(BlockScale(view, 0), 0.502005219f);
  EXPECT_EQ(BlockScale(view, 1), 1.0f);
  EXPECT_EQ(BlockScale(view, 2), 0.197317719f);
  const std::vector<float> restored = q.Dequantize();
  for (const Row& row : kRows) EXPECT_EQ(restored[row.element], row.doubled) << row.element;
}

}  // namespace
}  // namespace qlora::quant
