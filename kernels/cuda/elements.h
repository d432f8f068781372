// Element types in kernels, and the choice of a kernel by a view's run-time type.

#ifndef QLORA_KERNELS_CUDA_ELEMENTS_H_
#define QLORA_KERNELS_CUDA_ELEMENTS_H_

#include <cstdint>

#include "gpu/primitives.h"
#include "kernels/cuda/views.h"
#include "kernels/tensor.h"

namespace qlora::kernels::cuda {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

QLORA_DEVICE float Widen(float x) { return x; }
QLORA_DEVICE float Widen(Bf16 x) { return gpu::FromBf16(x.bits); }
QLORA_DEVICE float Widen(F16 x) { return gpu::FromF16(x.bits); }

// Rounds to nearest, ties to even.
template <class T>
QLORA_DEVICE T Narrow(float x);
template <>
QLORA_DEVICE float Narrow<float>(float x) {
  return x;
}
template <>
QLORA_DEVICE Bf16 Narrow<Bf16>(float x) {
  return {gpu::ToBf16(x)};
}
template <>
QLORA_DEVICE F16 Narrow<F16>(float x) {
  return {gpu::ToF16(x)};
}

template <class T>
struct TypeTag {
  using Type = T;
};
// Calls f(TypeTag<float or Bf16>): activations and their gradients.
template <class F>
void DispatchActivation(DType type, F&& f) {
  if (type == DType::kF32) {
    f(TypeTag<float>());
  } else {
    f(TypeTag<Bf16>());
  }
}
// Calls f(TypeTag<float, Bf16 or F16>): weights.
template <class F>
void DispatchWeight(DType type, F&& f) {
  if (type == DType::kF16) {
    f(TypeTag<F16>());
  } else {
    DispatchActivation(type, f);
  }
}

// Element i of a row-major view of run-time type: for the rare reads, such as a bias.
QLORA_DEVICE float WidenAt(const ConstTensor& t, int64_t row, int64_t column) {
  const int64_t i = row * t.pitch + column;
  switch (t.dtype) {
    case DType::kF32:
      return static_cast<const float*>(t.data)[i];
    case DType::kBf16:
      return gpu::FromBf16(static_cast<const uint16_t*>(t.data)[i]);
    default:
      return gpu::FromF16(static_cast<const uint16_t*>(t.data)[i]);
  }
}

// Row r of a view whose elements are T.
template <class T>
QLORA_DEVICE const T* RowOf(const ConstTensor& t, int64_t r) {
  return static_cast<const T*>(t.data) + r * t.pitch;
}
template <class T>
QLORA_DEVICE T* RowOf(const Tensor& t, int64_t r) {
  return static_cast<T*>(t.data) + r * t.pitch;
}

// How many of `capacity` rows hold data.
QLORA_DEVICE int64_t LiveRowCount(const LiveRows& live, int64_t capacity) {
  if (live.data == nullptr) return capacity;
  const int64_t count = *static_cast<const int32_t*>(live.data);
  return count < capacity ? count : capacity;
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_ELEMENTS_H_
