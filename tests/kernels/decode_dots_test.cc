// The dot products of one row of 4-bit weights: fused with decoding, the same bytes as apart.

#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/isa.h"
#include "quant/codebook.h"
#include "quant/dynamic_map.h"

namespace qlora::kernels::cpu {
namespace {

const GemmKernels* KernelsNumber(int i) {
  switch (i) {
    case 0:
      return &PortableKernels();
    case 1:
      return BestIsa() >= Isa::kAvx2 ? &Avx2Kernels() : nullptr;
    default:
      return BestIsa() >= Isa::kAvx512 ? &Avx512Kernels() : nullptr;
  }
}

TEST(DecodeDots, EqualsDecodingAndThenMultiplying) {
  constexpr int64_t kCount = 4096, kPitch = 1040;
  std::vector<uint8_t> codes(kCount / 2), absmax(kCount / 32);
  std::vector<float> x(8 * kPitch), plain(kCount / 32);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(i * 151 + i / 7);
  for (size_t i = 0; i < absmax.size(); ++i) {
    absmax[i] = uint8_t(i * 37 + 11);
    plain[i] = 0.5f + float(i % 17);
  }
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 2654435761u >> 20) - 2048) / 777.0f;
  const float nested[] = {0.75f};
  for (int number = 0; number < 3; ++number) {
    const GemmKernels* kernels = KernelsNumber(number);
    if (kernels == nullptr) continue;
    for (const int block_size : {32, 64, 4096}) {
      for (const bool is_double : {false, true}) {
        DecodeSource source;
        source.spec.block_size = block_size;
        source.codes = codes.data();
        source.values = quant::CodeValues(source.spec.type).data();
        if (is_double) {
          source.absmax_u8 = absmax.data();
          source.nested_absmax = nested;
          source.offset = 1.25f;
          source.map = quant::SignedDynamicMap().data();
        } else {
          source.absmax_f32 = plain.data();
        }
        for (const int64_t begin : {0, 32, 96, 1000, 1001}) {
          for (const int64_t depth : {0, 1, 31, 32, 33, 64, 100, 200, 1024, 1029}) {
            for (int rows = 1; rows <= 8; ++rows) {
              for (const bool round : {false, true}) {
                std::vector<float> w(depth), scratch(depth), expected(8, -7), found(8, -7);
                kernels->decode(source, begin, depth, round, w.data());
                kernels->dots(w.data(), x.data(), kPitch, rows, depth, expected.data());
                kernels->decode_dots(source, begin, round, x.data(), kPitch, rows, depth,
                                     scratch.data(), found.data());
                ASSERT_EQ(std::memcmp(expected.data(), found.data(), 8 * sizeof(float)), 0)
                    << "kernels " << number << ", block " << block_size << ", begin " << begin
                    << ", depth " << depth << ", rows " << rows << ", round " << round;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace qlora::kernels::cpu
