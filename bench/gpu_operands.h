// GpuOperands: owner of the operands of an op that is timed. They are made on the device from
// repeated patterns: a matrix of a gigabyte costs a copy, not a random number for each element.

#ifndef QLORA_BENCH_GPU_OPERANDS_H_
#define QLORA_BENCH_GPU_OPERANDS_H_

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/ops/quantize.h"

namespace qlora::bench {

class GpuOperands {
 public:
  // Without a device its views have shapes and no memory.
  explicit GpuOperands(kernels::Device* device) : device_(device) {}

  // Zeros; outputs too, since memory that was never written is one page and reading it flatters.
  kernels::Tensor Zeros(kernels::DType dtype, int64_t rows, int64_t cols);
  // Uniform numbers of this standard deviation, bf16 or f32: products of zeros draw less power and
  // run up to an eighth faster than those of numbers.
  kernels::Tensor Random(kernels::DType dtype, int64_t rows, int64_t cols, float deviation);
  kernels::Tensor RandomBytes(int64_t n);
  kernels::Tensor Value(int64_t rows, int64_t cols, float value);  // f32
  template <class T>
  kernels::Tensor Table(kernels::DType dtype, int64_t rows, const std::vector<T>& values) {
    const kernels::Tensor t = Zeros(dtype, rows, int64_t(values.size()) / rows);
    CopyIn(t.data, values.data(), int64_t(values.size() * sizeof(T)));
    return t;
  }
  // A weight in 4 bits with double quantization, block 64. Any bytes are a weight.
  kernels::QuantizedTensor Quantized(int64_t rows, int64_t cols);
  kernels::QuantizedOutput QuantizedOut(int64_t rows, int64_t cols);

  // The first error: views made from then on have no memory.
  const absl::Status& status() const { return status_; }

 private:
  void CopyIn(void* to, const void* from, int64_t bytes);
  void Repeat(const kernels::Tensor& t, const std::vector<uint8_t>& pattern);

  kernels::Device* device_;
  std::vector<kernels::Buffer> buffers_;
  std::map<std::pair<kernels::DType, float>, std::vector<uint8_t>> random_;
  absl::Status status_;
};

}  // namespace qlora::bench

#endif  // QLORA_BENCH_GPU_OPERANDS_H_
