// Small fp32 products in registers, and the moves of tiles that attention needs around them.
// Included by simd_attention.h only: see vec.h.

#ifndef QLORA_KERNELS_CPU_SIMD_PRODUCT_H_
#define QLORA_KERNELS_CPU_SIMD_PRODUCT_H_

#include "kernels/cpu/vec.h"

namespace qlora::kernels::cpu {
namespace {

// Rows and vectors of the accumulator block: 24 of 32 registers with AVX-512, 12 of 16 with AVX2 (a
// Vec takes two there), 12 of 16 with SSE (a Vec takes four).
constexpr int kProductRows = kNativeLanes == 4 ? 3 : 6;
constexpr int kProductVectors = kNativeLanes == 16 ? 4 : 1;
// Every panel of attention has this many columns, of which a product computes whole vectors.
constexpr int64_t kPanelColumns = 64;

QLORA_INLINE NativeF LoadNative(const float* from) {
  NativeF result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
QLORA_INLINE void StoreNative(float* to, NativeF x) { std::memcpy(to, &x, sizeof(x)); }

// The left operand: element (row, j) is at data[row · row_step + j · step].
struct Left {
  const float* data;
  int64_t row_step, step;
};

// c[row][16·v...] (+)= Σ_j left(row, j) · right[j][16·v...], j in order; rows of `right` and `c`
// have kPanelColumns. In native vectors: accumulators inside a struct would stay in memory.
template <int kRows, int kVectors>
QLORA_INLINE void ProductBlock(Left left, int64_t depth, const float* right, float* c,
                               bool accumulate) {
  constexpr int kNative = kVectors * kParts;
  NativeF sum[kRows][kNative];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kNative; ++v) sum[row][v] = NativeF{};
  }
  if (accumulate) {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kNative; ++v) {
        sum[row][v] = LoadNative(c + row * kPanelColumns + v * kNativeLanes);
      }
    }
  }
  for (int64_t j = 0; j < depth; ++j) {
    NativeF b[kNative];
#pragma GCC unroll 4
    for (int v = 0; v < kNative; ++v)
      b[v] = LoadNative(right + j * kPanelColumns + v * kNativeLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const NativeF a = left.data[row * left.row_step + j * left.step] - NativeF{};
#pragma GCC unroll 4
      for (int v = 0; v < kNative; ++v) sum[row][v] = NativeFma(a, b[v], sum[row][v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kNative; ++v) {
      StoreNative(c + row * kPanelColumns + v * kNativeLanes, sum[row][v]);
    }
  }
}

template <int kVectors>
inline void ProductPanel(Left left, int64_t rows, int64_t depth, const float* right, float* c,
                         bool accumulate) {
  int64_t row = 0;
  for (; row + kProductRows <= rows; row += kProductRows) {
    ProductBlock<kProductRows, kVectors>(
        {left.data + row * left.row_step, left.row_step, left.step}, depth, right,
        c + row * kPanelColumns, accumulate);
  }
  left.data += row * left.row_step;
  c += row * kPanelColumns;
  switch (rows - row) {
    case 1:
      return ProductBlock<1, kVectors>(left, depth, right, c, accumulate);
    case 2:
      return ProductBlock<2, kVectors>(left, depth, right, c, accumulate);
    case 3:
      return ProductBlock<3, kVectors>(left, depth, right, c, accumulate);
    case 4:
      return ProductBlock<4, kVectors>(left, depth, right, c, accumulate);
    case 5:
      return ProductBlock<5, kVectors>(left, depth, right, c, accumulate);
    default:
      return;
  }
}

// All `rows` of a panel, `columns` rounded up to whole vectors.
inline void Product(Left left, int64_t rows, int64_t depth, const float* right, float* c,
                    int64_t columns, bool accumulate) {
  int64_t vectors = (columns + kLanes - 1) / kLanes;
  for (; vectors >= kProductVectors; vectors -= kProductVectors) {
    ProductPanel<kProductVectors>(left, rows, depth, right, c, accumulate);
    right += kProductVectors * kLanes;
    c += kProductVectors * kLanes;
  }
  if constexpr (kProductVectors == 4) {
    if (vectors == 3) return ProductPanel<3>(left, rows, depth, right, c, accumulate);
    if (vectors == 2) return ProductPanel<2>(left, rows, depth, right, c, accumulate);
    if (vectors == 1) return ProductPanel<1>(left, rows, depth, right, c, accumulate);
  }
}

// One native square: rows in, columns out, by interleaving row i with row i + half, log2(lanes)
// times.
QLORA_INLINE void TransposeSquare(NativeF (&rows)[kNativeLanes]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < kNativeLanes; stage *= 2) {
    NativeF next[kNativeLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kNativeLanes / 2; ++i) {
      const NativeF a = rows[i], b = rows[i + kNativeLanes / 2];
#if defined(__AVX512F__)
      next[2 * i] =
          __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                                14, 30, 15, 31);
#elif defined(__AVX2__)
      next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
      next[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
    }
#pragma GCC unroll 16
    for (int i = 0; i < kNativeLanes; ++i) rows[i] = next[i];
  }
}

// to[c][r] = from[r][c] for r < rows, c < columns.
inline void Transpose(const float* from, int64_t from_pitch, int64_t rows, int64_t columns,
                      float* to, int64_t to_pitch) {
  const int64_t whole_rows = rows / kNativeLanes * kNativeLanes;
  const int64_t whole_columns = columns / kNativeLanes * kNativeLanes;
  for (int64_t r = 0; r < whole_rows; r += kNativeLanes) {
    for (int64_t c = 0; c < whole_columns; c += kNativeLanes) {
      NativeF square[kNativeLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kNativeLanes; ++i) {
        std::memcpy(&square[i], from + (r + i) * from_pitch + c, sizeof(NativeF));
      }
      TransposeSquare(square);
#pragma GCC unroll 16
      for (int i = 0; i < kNativeLanes; ++i) {
        std::memcpy(to + (c + i) * to_pitch + r, &square[i], sizeof(NativeF));
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = r < whole_rows ? whole_columns : 0;
    for (int64_t c = first; c < columns; ++c) to[c * to_pitch + r] = from[r * from_pitch + c];
  }
}

// Copies a row to fp32, and back with one rounding.
template <class T>
QLORA_INLINE void WidenRow(const T* from, int64_t n, float* to) {
  ForVectors(n, [&](int64_t i, auto count)
                    QLORA_LAMBDA_INLINE { Store(to + i, Load(from + i, count), count); });
}
template <class T>
QLORA_INLINE void NarrowRow(const float* from, int64_t n, float scale, T* to) {
  const Vec factor = Set(scale);
  ForVectors(n, [&](int64_t i, auto count)
                    QLORA_LAMBDA_INLINE { Store(to + i, Load(from + i, count) * factor, count); });
}

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_SIMD_PRODUCT_H_
