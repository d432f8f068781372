#include "tests/support/operand_memory.h"

#include <algorithm>
#include <cstring>

namespace qlora::kernels::optest {
namespace {

constexpr int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

void FillPoison(CountedRandom& random, DType dtype, void* data, int64_t bytes) {
  uint8_t* out = static_cast<uint8_t*>(data);
  const int64_t size = SizeOf(dtype);
  for (int64_t i = 0; i + size <= bytes; i += size) {
    uint64_t bits = random.Bits();
    switch (dtype) {
      case DType::kF32:
        bits = (bits & 0x803fffffu) | 0x7fc00000u;
        break;
      case DType::kBf16:
        bits = (bits & 0x803fu) | 0x7fc0u;
        break;
      case DType::kF16:
        bits = (bits & 0x81ffu) | 0x7e00u;
        break;
      case DType::kF64:
        bits |= 0x7ff8000000000000u;
        break;
      default:
        break;
    }
    std::memcpy(out + i, &bits, size);
  }
}

Tensor OperandMemory::New(DType dtype, int64_t rows, int64_t cols) {
  if (!pitched_) return NewContiguous(dtype, rows, cols);
  const int64_t gap = random_.Pick<int64_t>({0, 1, 3, 8, 32});
  const int64_t skip = random_.Pick<int64_t>({0, 1, 5, 16});
  return Add(dtype, rows, cols, cols + gap, skip);
}

Tensor OperandMemory::NewContiguous(DType dtype, int64_t rows, int64_t cols) {
  return Add(dtype, rows, cols, cols, pitched_ ? random_.Pick<int64_t>({0, 1, 4}) : 0);
}

Tensor OperandMemory::NewI32(int32_t value) {
  const Tensor t = NewRow(DType::kI32, 1);
  t.Scalar<int32_t>() = value;
  return t;
}
Tensor OperandMemory::NewF32(float value) {
  const Tensor t = NewRow(DType::kF32, 1);
  t.Scalar<float>() = value;
  return t;
}
Tensor OperandMemory::NewF64(double value) {
  const Tensor t = NewRow(DType::kF64, 1);
  t.Scalar<double>() = value;
  return t;
}

Tensor OperandMemory::Add(DType dtype, int64_t rows, int64_t cols, int64_t pitch, int64_t skip) {
  const int64_t size = SizeOf(dtype);
  const int64_t bytes = RoundUp(2 * kGuardBytes + (skip + rows * pitch) * size, kGuardBytes);
  Block block{std::make_unique<uint8_t[]>(bytes + kGuardBytes), nullptr, bytes, image_bytes_};
  block.data = reinterpret_cast<uint8_t*>(
      RoundUp(reinterpret_cast<intptr_t>(block.storage.get()), kGuardBytes));
  FillPoison(random_, dtype, block.data, bytes);
  const Tensor view{block.data + kGuardBytes + skip * size, dtype, rows, cols, pitch};
  image_bytes_ += bytes;
  blocks_.push_back(std::move(block));
  return view;
}

std::vector<uint8_t> OperandMemory::Image() const {
  std::vector<uint8_t> image(image_bytes_);
  for (const Block& block : blocks_) {
    std::memcpy(image.data() + block.offset, block.data, block.bytes);
  }
  return image;
}

int64_t OperandMemory::OffsetOf(const void* address) const {
  const uint8_t* p = static_cast<const uint8_t*>(address);
  for (const Block& block : blocks_) {
    if (p >= block.data && p < block.data + block.bytes) return block.offset + (p - block.data);
  }
  return -1;
}

double Get(const ConstTensor& t, int64_t row, int64_t column) {
  switch (t.dtype) {
    case DType::kF32:
      return t.Row<float>(row)[column];
    case DType::kBf16:
      return quant::F32FromBf16(t.Row<uint16_t>(row)[column]);
    case DType::kF16:
      return quant::F32FromF16(t.Row<uint16_t>(row)[column]);
    case DType::kF64:
      return t.Row<double>(row)[column];
    case DType::kU8:
      return t.Row<uint8_t>(row)[column];
    case DType::kI32:
      return t.Row<int32_t>(row)[column];
    case DType::kU64:
      return double(t.Row<uint64_t>(row)[column]);
  }
  return 0;
}

void Put(const Tensor& t, int64_t row, int64_t column, double value) {
  switch (t.dtype) {
    case DType::kF32:
      t.Row<float>(row)[column] = float(value);
      return;
    case DType::kBf16:
      t.Row<uint16_t>(row)[column] = quant::Bf16FromF32(float(value));
      return;
    case DType::kF16:
      t.Row<uint16_t>(row)[column] = quant::F16FromF32(float(value));
      return;
    case DType::kF64:
      t.Row<double>(row)[column] = value;
      return;
    case DType::kU8:
      t.Row<uint8_t>(row)[column] = uint8_t(value);
      return;
    case DType::kI32:
      t.Row<int32_t>(row)[column] = int32_t(value);
      return;
    case DType::kU64:
      t.Row<uint64_t>(row)[column] = uint64_t(value);
      return;
  }
}

void FillNormal(CountedRandom& random, const Tensor& t, double deviation, int64_t rows) {
  const int64_t end = rows < 0 ? t.rows : rows;
  for (int64_t r = 0; r < end; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) Put(t, r, c, deviation * random.Normal());
  }
}

void FillIntegers(CountedRandom& random, const Tensor& t, int64_t low, int64_t high, int64_t rows) {
  const int64_t end = rows < 0 ? t.rows : rows;
  for (int64_t r = 0; r < end; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) Put(t, r, c, double(low + random.Below(high - low)));
  }
}

void FillValue(const Tensor& t, double value, int64_t rows) {
  const int64_t end = rows < 0 ? t.rows : rows;
  for (int64_t r = 0; r < end; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) Put(t, r, c, value);
  }
}

}  // namespace qlora::kernels::optest
