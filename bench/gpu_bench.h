// Times the cases of gpu_cases.h through Google Benchmark.
//
// An op's time is that of a prepared piece with several copies of it, started again and again
// between two waits: on the card one kernel follows the other as in a step. Each copy has operands
// of its own, of four times the second-level cache together, so that none finds its weights there.

#ifndef QLORA_BENCH_GPU_BENCH_H_
#define QLORA_BENCH_GPU_BENCH_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/gpu_cases.h"
#include "bench/gpu_limits.h"
#include "kernels/device.h"

namespace qlora::bench {

// A piece of copies of an op, and all that it touches.
class RotatedOp {
 public:
  // Copies until their operands are `rotation_bytes` together. An op without variants ignores
  // `variant`.
  static absl::StatusOr<std::unique_ptr<RotatedOp>> Create(kernels::Device* device,
                                                           const GpuCase& c,
                                                           kernels::LinearVariant variant,
                                                           int64_t rotation_bytes);
  // Starts the piece `runs` times and waits; seconds of the whole.
  absl::StatusOr<double> Run(int64_t runs);

  int64_t copies() const { return int64_t(ops_.size()); }
  const kernels::Op& op() const { return ops_.front(); }

 private:
  explicit RotatedOp(kernels::Device* device) : device_(device), operands_(device) {}

  kernels::Device* device_;
  GpuOperands operands_;
  std::vector<kernels::Op> ops_;
  kernels::Buffer workspace_;  // of all copies: they run in order
  std::unique_ptr<kernels::Piece> piece_;
};

// Gives an op that has a field for it its scratch memory.
void SetWorkspace(kernels::Op* op, void* data, int64_t bytes);

// The variants in which the device runs a case, its own choice first.
std::vector<kernels::LinearVariant> VariantsOf(const kernels::Device& device, const GpuCase& c);

// What the marks are measured with.
struct MarkSizes {
  int64_t copy_bytes = int64_t{1} << 30;
  int64_t product_rows = 8192, product_in = 4096, product_out = 14336;
};

struct GpuMarks {
  GpuLimits card;
  // Of the dense bf16 product, by the fastest of the device's variants.
  double product_flops_per_second = 0;
  kernels::LinearVariant product_variant = {};
};
absl::StatusOr<GpuMarks> MeasureMarks(kernels::Device* device, const MarkSizes& sizes);

// Registers every case in every variant; where there are several, its name ends in the variant's.
// `device` and `marks` must outlive the run.
void RegisterGpu(kernels::Device* device, const GpuMarks& marks, const std::vector<GpuCase>& cases);

}  // namespace qlora::bench

#endif  // QLORA_BENCH_GPU_BENCH_H_
