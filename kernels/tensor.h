// Borrowed two-dimensional views of device memory, with a row pitch and a run-time element type.
//
// A view owns nothing. `ConstTensor` is read, `Tensor` is written: the two types are how an op
// declares what it does to each of its operands, and hazards, lifetimes and relocation are derived
// from that.

#ifndef QLORA_KERNELS_TENSOR_H_
#define QLORA_KERNELS_TENSOR_H_

#include <cstdint>

#include "quant/float_formats.h"

namespace qlora::kernels {

enum class DType : uint8_t { kF32, kBf16, kF16, kF64, kU8, kI32, kU64 };

constexpr int64_t SizeOf(DType type) {
  switch (type) {
    case DType::kF64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBf16:
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 1;
  }
  return 0;
}

constexpr const char* NameOf(DType type) {
  constexpr const char* kNames[] = {"f32", "bf16", "f16", "f64", "u8", "i32", "u64"};
  return kNames[static_cast<int>(type)];
}

// A bf16 number in storage. Arithmetic happens in fp32; rounding is to nearest, ties to even.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) : bits(quant::Bf16FromF32(value)) {}
  explicit operator float() const { return quant::F32FromBf16(bits); }
};

// The next multiple of `alignment`.
constexpr int64_t AlignUp(int64_t bytes, int64_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// `rows` × `cols` elements; row r begins `r * pitch` elements after `data`. A scalar is 1 × 1.
struct ConstTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t pitch = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t Count() const { return rows * cols; }
  // Bytes from the first element to behind the last one.
  int64_t Extent() const {
    return rows == 0 || cols == 0 ? 0 : ((rows - 1) * pitch + cols) * SizeOf(dtype);
  }
  template <class T>
  const T* Row(int64_t r) const {
    return static_cast<const T*>(data) + r * pitch;
  }
  template <class T>
  const T& Scalar() const {
    return *static_cast<const T*>(data);
  }
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t pitch = 0;

  explicit operator bool() const { return data != nullptr; }
  operator ConstTensor() const {
    return {data, dtype, rows, cols, pitch};
  }  // NOLINT: a view narrows
  int64_t Count() const { return rows * cols; }
  int64_t Extent() const { return static_cast<ConstTensor>(*this).Extent(); }
  template <class T>
  T* Row(int64_t r) const {
    return static_cast<T*>(data) + r * pitch;
  }
  template <class T>
  T& Scalar() const {
    return *static_cast<T*>(data);
  }
};

// Rows [begin, begin + count) and columns [column, column + columns) of a view.
inline Tensor Slice(Tensor t, int64_t begin, int64_t count, int64_t column, int64_t columns) {
  t.data = static_cast<uint8_t*>(t.data) + (begin * t.pitch + column) * SizeOf(t.dtype);
  t.rows = count;
  t.cols = columns;
  return t;
}
inline Tensor SliceRows(Tensor t, int64_t begin, int64_t count) {
  return Slice(t, begin, count, 0, t.cols);
}
// The same elements seen as rows of another length; the view must have no gaps between rows.
inline Tensor Reshape(Tensor t, int64_t rows, int64_t cols) {
  t.rows = rows;
  t.cols = t.pitch = cols;
  return t;
}
inline ConstTensor Reshape(ConstTensor t, int64_t rows, int64_t cols) {
  t.rows = rows;
  t.cols = t.pitch = cols;
  return t;
}

// How many of a view's rows hold data in this step, read on the device: an int32 scalar, or empty
// for "all of them". Rows behind the count are neither read nor written.
using LiveRows = ConstTensor;

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_TENSOR_H_
