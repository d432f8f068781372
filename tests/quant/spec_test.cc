#include "quant/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>

namespace qlora::quant {
namespace {

TEST(QuantSpec, Sizes) {
  const QuantSpec spec;
  EXPECT_EQ(spec.CodeBytes(0), 0);
  EXPECT_EQ(spec.BlockCount(0), 0);
  EXPECT_EQ(spec.GroupCount(0), 0);
  EXPECT_EQ(spec.CodeBytes(1), 1);
  EXPECT_EQ(spec.CodeBytes(7), 4);
  EXPECT_EQ(spec.BlockCount(1), 1);
  EXPECT_EQ(spec.BlockCount(64), 1);
  EXPECT_EQ(spec.BlockCount(65), 2);
  EXPECT_EQ(spec.GroupCount(1), 1);
  EXPECT_EQ(spec.GroupCount(64 * 256), 1);
  EXPECT_EQ(spec.GroupCount(64 * 256 + 1), 2);
  EXPECT_EQ((QuantSpec{.double_quant = false}).GroupCount(1 << 20), 0);
  EXPECT_EQ((QuantSpec{.block_size = 4096}).BlockCount(4097), 2);
}

TEST(QuantSpec, SizesDoNotOverflow) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  constexpr QuantSpec kSpec{.block_size = 32};
  static_assert(kSpec.CodeBytes(kMost) == (int64_t{1} << 62));
  static_assert(kSpec.BlockCount(kMost) == (int64_t{1} << 58));
  static_assert(kSpec.GroupCount(kMost) == (int64_t{1} << 50));
  static_assert(kSpec.CodeBytes(-1) == 0 && kSpec.BlockCount(-1) == 0);
  static_assert(kSpec.GroupCount(std::numeric_limits<int64_t>::min()) == 0);
}

TEST(QuantSpec, LegalBlockSizesOnly) {
  int legal = 0;
  for (int size = -70; size <= 9000; ++size) {
    const absl::Status status = QuantSpec{.block_size = size}.Validate();
    const bool want = size == 32 || size == 64 || size == 128 || size == 256 || size == 512 ||
                      size == 1024 || size == 2048 || size == 4096;
    ASSERT_EQ(status.ok(), want) << size;
    legal += status.ok() ? 1 : 0;
  }
  EXPECT_EQ(legal, 8);
  EXPECT_FALSE(QuantSpec{.block_size = std::numeric_limits<int>::min()}.Validate().ok());
}

TEST(QuantSpec, ErrorsNameWhatWasFoundAndWhatIsAllowed) {
  const absl::Status size = QuantSpec{.block_size = 48}.Validate();
  EXPECT_EQ(size.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(size.message()), testing::HasSubstr("found 48"));
  EXPECT_THAT(std::string(size.message()), testing::HasSubstr("32 to 4096"));
  const absl::Status type = QuantSpec{.type = static_cast<QuantType>(4)}.Validate();
  EXPECT_EQ(type.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(type.message()), testing::HasSubstr("found the number 4"));
}

TEST(QuantSpec, ConstViewKeepsEveryPart) {
  uint8_t codes, scales;
  float absmax, nested, offset, map;
  const QuantSpec spec{.type = QuantType::kInt4, .block_size = 128};
  const ConstQuantizedView view = AsConst(spec, {.codes = &codes,
                                                 .absmax_f32 = &absmax,
                                                 .absmax_u8 = &scales,
                                                 .nested_absmax = &nested,
                                                 .nested_offset = &offset,
                                                 .nested_map = &map});
  EXPECT_EQ(view.spec, spec);
  EXPECT_EQ(view.codes, &codes);
  EXPECT_EQ(view.absmax_f32, &absmax);
  EXPECT_EQ(view.absmax_u8, &scales);
  EXPECT_EQ(view.nested_absmax, &nested);
  EXPECT_EQ(view.nested_offset, &offset);
  EXPECT_EQ(view.nested_map, &map);
}

}  // namespace
}  // namespace qlora::quant
