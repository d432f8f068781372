// The sums of products, a few rows at a time and in micro-tiles, and the tables of kernels made of
// them and of gemm_elements_inl.h, over a vector class `Vec` that the including file defines.
// NOLINTBEGIN(build/header_guard): included once by each file that defines a Vec.

#include "kernels/cpu/gemm_elements_inl.h"

namespace qlora::kernels::cpu {
namespace {

// ---- dot products, for a few rows ----

QLORA_INLINE float SumLanes(F v) {
  float lanes[kLanes];
  StoreAs(lanes, v);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Running sums of kRows rows; lanes of even vectors and of odd ones apart.
template <int kRows>
struct DotSums {
  F even[kRows] = {}, odd[kRows] = {};

  // Vector number `v` of w, and x where it begins.
  QLORA_INLINE void Add(int v, F w, const float* x, int64_t pitch) {
    F(&sums)[kRows] = v % 2 == 0 ? even : odd;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sums[i] = Vec::Fma(w, LoadAs<F>(x + i * pitch), sums[i]);
  }
  // Goes on with w[k], k from `begin` to `depth`, in vectors and then one by one, and ends.
  QLORA_INLINE void Finish(const float* w, const float* x, int64_t pitch, int64_t begin,
                           int64_t depth, float* out) {
    int64_t k = begin;
    for (; k + 2 * kLanes <= depth; k += 2 * kLanes) {
      Add(0, LoadAs<F>(w + k), x + k, pitch);
      Add(1, LoadAs<F>(w + k + kLanes), x + k + kLanes, pitch);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      float sum = SumLanes(even[i] + odd[i]);
      for (int64_t j = k; j < depth; ++j) sum += w[j] * x[i * pitch + j];
      out[i] = sum;
    }
  }
};

template <int kRows>
void DotsOf(const float* w, const float* x, int64_t pitch, int64_t depth, float* out) {
  DotSums<kRows>().Finish(w, x, pitch, 0, depth, out);
}

// A row's sum has one order, whatever the number of rows beside it.
void Dots(const float* w, const float* x, int64_t pitch, int rows, int64_t depth, float* out) {
  for (; rows >= 4; rows -= 4, x += 4 * pitch, out += 4) DotsOf<4>(w, x, pitch, depth, out);
  for (; rows > 0; --rows, x += pitch, ++out) DotsOf<1>(w, x, pitch, depth, out);
}

// Weights go from code to sum in registers, 32 at a time; what is left over goes through scratch.
template <int kRows>
void DecodeDotsOf(const DecodeSource& s, int64_t begin, bool round, const float* x, int64_t pitch,
                  int64_t depth, float* scratch, float* out) {
  DotSums<kRows> sums;
  alignas(64) float table[16];
  const int64_t whole = depth / 32 * 32;
  const int shift = __builtin_ctz(s.spec.block_size);
  for (int64_t k = 0; k < whole;) {
    const int64_t block = (begin + k) >> shift;
    const int64_t block_end = ((block + 1) << shift) - begin;
    const int64_t stop = block_end < whole ? block_end : whole;
    ScaleTable(s.values, ScaleOfBlock(s, block), round, table);
    const typename Vec::Table lookup = Vec::MakeTable(table);
    for (; k < stop; k += 32) {
      constexpr int kVectors = 16 / kLanes;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        F w[kVectors];
        Vec::Decode16(lookup, s.codes + (begin + k) / 2 + half * 8, w);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums.Add(half * kVectors + v, w[v], x + k + half * 16 + v * kLanes, pitch);
        }
      }
    }
  }
  if (whole < depth) Decode(s, begin + whole, depth - whole, round, scratch + whole);
  sums.Finish(scratch, x, pitch, whole, depth, out);
}

// The same bytes as Decode and then Dots.
void DecodeDots(const DecodeSource& source, int64_t begin, bool round, const float* x,
                int64_t pitch, int rows, int64_t depth, float* scratch, float* out) {
  // Blocks are whole multiples of 32 weights.
  if (begin % 32 != 0 || rows > 4) {
    Decode(source, begin, depth, round, scratch);
    return Dots(scratch, x, pitch, rows, depth, out);
  }
  if (rows == 4) return DecodeDotsOf<4>(source, begin, round, x, pitch, depth, scratch, out);
  if (rows == 3) return DecodeDotsOf<3>(source, begin, round, x, pitch, depth, scratch, out);
  if (rows == 2) return DecodeDotsOf<2>(source, begin, round, x, pitch, depth, scratch, out);
  if (rows == 1) DecodeDotsOf<1>(source, begin, round, x, pitch, depth, scratch, out);
}

// ---- micro-tiles ----

// MultiplyAdd::Apply(a, b, c): one word of depth. A is broadcast, B fills the lanes.
template <class MultiplyAdd, int kRows, int kVectors>
void MicroTile(int64_t words, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc) {
  F sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[i][j] = LoadAs<F>(c + i * ldc + j * kLanes);
  }
  for (int64_t w = 0; w < words; ++w) {
    U lanes[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) lanes[j] = LoadAs<U>(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const U one = U{} + a[i];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] = MultiplyAdd::Apply(one, lanes[j], sum[i][j]);
    }
    a += kRows;
    b += kVectors * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) StoreAs(c + i * ldc + j * kLanes, sum[i][j]);
  }
}

struct MultiplyAddF32 {
  static QLORA_INLINE F Apply(U a, U b, F c) { return Vec::Fma((F)a, (F)b, c); }
};

template <class MultiplyAdd, int kPerWord, int kTall, int kShort, int kWide>
constexpr GemmKernels MakeKernels() {
  constexpr int kNarrow = kWide > 1 ? kWide / 2 : 1;
  return {.k_per_word = kPerWord,
          .micro = {{kTall, kWide * kLanes, MicroTile<MultiplyAdd, kTall, kWide>},
                    {kShort, kWide * kLanes, MicroTile<MultiplyAdd, kShort, kWide>},
                    {kTall, kNarrow * kLanes, MicroTile<MultiplyAdd, kTall, kNarrow>},
                    {kShort, kNarrow * kLanes, MicroTile<MultiplyAdd, kShort, kNarrow>}},
          .pack_rows = PackRows<kPerWord>,
          .pack_columns = PackColumns<kPerWord>,
          .decode = Decode,
          .widen = WidenRow,
          .finish = Finish,
          .drop = Drop,
          .dots = Dots,
          .decode_dots = DecodeDots,
          .quantize = Quantize};
}

#undef QLORA_INLINE

}  // namespace
}  // namespace qlora::kernels::cpu
// NOLINTEND
