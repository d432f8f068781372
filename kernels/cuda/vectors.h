// Sixteen bytes of a row at a time where the view allows it, single elements where it does not.

#ifndef QLORA_KERNELS_CUDA_VECTORS_H_
#define QLORA_KERNELS_CUDA_VECTORS_H_

#include "kernels/cuda/elements.h"

namespace qlora::kernels::cuda {

// Elements of a T that a thread moves together.
template <class T>
inline constexpr int kVector = 16 / int(sizeof(T));

template <class T>
QLORA_DEVICE void WidenWords(const gpu::Words4& words, float (&x)[kVector<T>]) {
  QLORA_UNROLL
  for (int i = 0; i < kVector<T>; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = gpu::FloatOf(words.w[i]);
    } else {
      x[i] = Widen(T{uint16_t(words.w[i / 2] >> (i % 2 * 16))});
    }
  }
}
// The reverse, rounded.
template <class T>
QLORA_DEVICE gpu::Words4 NarrowWords(const float (&x)[kVector<T>]) {
  gpu::Words4 words;
  QLORA_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words.w[i] = gpu::BitsOf(x[i]);
    } else {
      words.w[i] = gpu::PackBf16(x[2 * i], x[2 * i + 1]);
    }
  }
  return words;
}

// Elements [first, first + kVector) of a row of `cols`, widened; zeros behind its end. `whole`: the
// row begins at a multiple of 16 bytes.
template <class T>
QLORA_DEVICE void LoadVector(const T* row, int64_t first, int64_t cols, bool whole,
                             float (&x)[kVector<T>]) {
  if (whole && first + kVector<T> <= cols) {
    WidenWords<T>(*reinterpret_cast<const gpu::Words4*>(row + first), x);
  } else {
    QLORA_UNROLL
    for (int i = 0; i < kVector<T>; ++i) x[i] = first + i < cols ? Widen(row[first + i]) : 0.0f;
  }
}

// The reverse: rounds, and writes nothing behind the row's end.
template <class T>
QLORA_DEVICE void StoreVector(T* row, int64_t first, int64_t cols, bool whole,
                              const float (&x)[kVector<T>]) {
  if (whole && first + kVector<T> <= cols) {
    *reinterpret_cast<gpu::Words4*>(row + first) = NarrowWords<T>(x);
  } else {
    QLORA_UNROLL
    for (int i = 0; i < kVector<T>; ++i) {
      if (first + i < cols) row[first + i] = Narrow<T>(x[i]);
    }
  }
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_VECTORS_H_
