// NormAndFinite in halves, as ranks run it that each have a part of x: on any device.
#ifndef QLORA_TESTS_KERNELS_NORM_HALVES_H_
#define QLORA_TESTS_KERNELS_NORM_HALVES_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/support/counted_random.h"

namespace qlora::kernels::optest {

// The chunk sums of three parts, made apart and taken together, give the bits of the whole.
inline void ExpectHalvesGiveTheWhole(Device& device) {
  constexpr int64_t kChunks = 9, kCount = kChunks * kReduceChunk - 100;
  constexpr int64_t kParts[] = {0, 2, 3, kChunks};  // chunks
  std::vector<float> x(kCount);
  CountedRandom random(11);
  for (float& value : x) value = float(random.Normal() * std::exp2(random.Below(30)));
  x[5] = x[3 * kReduceChunk] = std::numeric_limits<float>::infinity();

  Buffer memory = *device.Allocate(kCount * 4 + 2 * kChunks * kChunkSumBytes + 8 * 64);
  auto at = [&, next = int64_t{0}](DType dtype, int64_t count) mutable {
    const Tensor view{static_cast<uint8_t*>(memory.data()) + next, dtype, 1, count, count};
    next += BufferBytes(count * SizeOf(dtype));
    return view;
  };
  const Tensor values = at(DType::kF32, kCount);
  const Tensor sums[] = {at(DType::kF64, 1), at(DType::kF64, 1)};
  const Tensor nonfinite[] = {at(DType::kI32, 1), at(DType::kI32, 1)};
  const Tensor chunks[] = {at(DType::kU8, kChunks * kChunkSumBytes),
                           at(DType::kU8, kChunks * kChunkSumBytes)};
  ASSERT_TRUE(device.CopyIn(values.data, x.data(), kCount * 4).ok());
  std::vector<Op> ops = {NormAndFinite{
      .x = values, .sum_of_squares = sums[0], .nonfinite = nonfinite[0], .workspace = chunks[0]}};
  for (int part = 0; part < 3; ++part) {
    const int64_t begin = kParts[part] * kReduceChunk,
                  end = std::min(kParts[part + 1] * kReduceChunk, kCount);
    ops.push_back(
        NormAndFinite{.x = Slice(values, 0, 1, begin, end - begin),
                      .workspace = Slice(chunks[1], 0, 1, kParts[part] * kChunkSumBytes,
                                         (kParts[part + 1] - kParts[part]) * kChunkSumBytes)});
  }
  ops.push_back(
      NormAndFinite{.sum_of_squares = sums[1], .nonfinite = nonfinite[1], .workspace = chunks[1]});
  ASSERT_TRUE(device.RunOnce(ops).ok());
  double whole = 0, halves = -1;
  int32_t count = 0;
  ASSERT_TRUE(device.CopyOut(&whole, sums[0].data, 8).ok());
  ASSERT_TRUE(device.CopyOut(&halves, sums[1].data, 8).ok());
  ASSERT_TRUE(device.CopyOut(&count, nonfinite[1].data, 4).ok());
  EXPECT_EQ(std::memcmp(&whole, &halves, 8), 0) << whole << " " << halves;
  EXPECT_EQ(count, 2);
}

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_KERNELS_NORM_HALVES_H_
