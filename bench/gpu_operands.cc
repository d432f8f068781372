#include "bench/gpu_operands.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/dynamic_map.h"

namespace qlora::bench {

using kernels::DType;
using kernels::Tensor;

namespace {

constexpr int64_t kPatternBytes = int64_t{4} << 20;
constexpr quant::QuantSpec kSpec = {};

uint32_t Next(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

std::vector<uint8_t> RandomPattern(DType dtype, float deviation) {
  std::vector<uint8_t> bytes(kPatternBytes);
  uint32_t state = 1;
  const int64_t size = kernels::SizeOf(dtype);
  for (int64_t at = 0; at < kPatternBytes; at += size) {
    const float x = (float(Next(&state)) / float(1 << 24) - 0.5f) * std::sqrt(12.0f) * deviation;
    const uint16_t half = quant::Bf16FromF32(x);
    std::memcpy(bytes.data() + at, size == 2 ? static_cast<const void*>(&half) : &x, size);
  }
  return bytes;
}

std::vector<uint8_t> BytePattern() {
  std::vector<uint8_t> bytes(kPatternBytes);
  uint32_t state = 2;
  for (uint8_t& byte : bytes) byte = uint8_t(Next(&state));
  return bytes;
}

}  // namespace

Tensor GpuOperands::Zeros(DType dtype, int64_t rows, int64_t cols) {
  Tensor t{nullptr, dtype, rows, cols, cols};
  if (device_ == nullptr || !status_.ok()) return t;
  absl::StatusOr<kernels::Buffer> buffer = device_->Allocate(t.Extent());
  if (!buffer.ok()) {
    status_ = buffer.status();
    return t;
  }
  t.data = buffer->data();
  buffers_.push_back(*std::move(buffer));
  return t;
}

void GpuOperands::CopyIn(void* to, const void* from, int64_t bytes) {
  if (to != nullptr && status_.ok()) status_ = device_->CopyIn(to, from, bytes);
}

void GpuOperands::Repeat(const Tensor& t, const std::vector<uint8_t>& pattern) {
  const int64_t bytes = t ? t.Extent() : 0;
  for (int64_t at = 0; at < bytes; at += kPatternBytes) {
    CopyIn(static_cast<uint8_t*>(t.data) + at, pattern.data(), std::min(bytes - at, kPatternBytes));
  }
}

Tensor GpuOperands::Random(DType dtype, int64_t rows, int64_t cols, float deviation) {
  const Tensor t = Zeros(dtype, rows, cols);
  if (!t) return t;
  std::vector<uint8_t>& pattern = random_[{dtype, deviation}];
  if (pattern.empty()) pattern = RandomPattern(dtype, deviation);
  Repeat(t, pattern);
  return t;
}

Tensor GpuOperands::RandomBytes(int64_t n) {
  static const auto* const kPattern = new std::vector<uint8_t>(BytePattern());
  const Tensor t = Zeros(DType::kU8, 1, n);
  Repeat(t, *kPattern);
  return t;
}

Tensor GpuOperands::Value(int64_t rows, int64_t cols, float value) {
  return Table(DType::kF32, rows, std::vector<float>(rows * cols, value));
}

kernels::QuantizedTensor GpuOperands::Quantized(int64_t rows, int64_t cols) {
  const int64_t n = rows * cols;
  const auto& map = quant::SignedDynamicMap();
  kernels::QuantizedTensor q;
  q.spec = kSpec;
  q.codes = RandomBytes(kSpec.CodeBytes(n));
  q.absmax = RandomBytes(kSpec.BlockCount(n));
  q.nested_absmax = Value(1, kSpec.GroupCount(n), 0.01f);
  q.offset = Value(1, 1, 0.02f);
  q.map = Table(DType::kF32, 1, std::vector<float>(map.begin(), map.end()));
  return q;
}

kernels::QuantizedOutput GpuOperands::QuantizedOut(int64_t rows, int64_t cols) {
  const int64_t n = rows * cols;
  return {.codes = Zeros(DType::kU8, 1, kSpec.CodeBytes(n)),
          .absmax = Zeros(DType::kU8, 1, kSpec.BlockCount(n)),
          .nested_absmax = Zeros(DType::kF32, 1, kSpec.GroupCount(n)),
          .offset = Zeros(DType::kF32, 1, 1)};
}

}  // namespace qlora::bench
