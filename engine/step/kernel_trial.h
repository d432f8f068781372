// One linear op with memory and random numbers of its own: to time a variant of it, and to see what
// it computes.

#ifndef QLORA_ENGINE_STEP_KERNEL_TRIAL_H_
#define QLORA_ENGINE_STEP_KERNEL_TRIAL_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace qlora::engine {

class KernelTrial {
 public:
  // `op` is a LinearForward or LinearBackwardInput; of its views only shapes and types count. Every
  // trial of an op sees the same numbers. `device` must outlive it.
  static absl::StatusOr<std::unique_ptr<KernelTrial>> Create(const kernels::Op& op,
                                                             kernels::LinearVariant variant,
                                                             kernels::Device* device);

  // Of one run, the best of several tries.
  absl::StatusOr<double> Seconds();
  // y, or dx; both bf16 or f32.
  absl::StatusOr<std::vector<float>> Result();

 private:
  explicit KernelTrial(kernels::Device* device) : device_(*device) {}
  absl::Status Allocate();
  absl::Status Fill(const char* name, const kernels::ConstTensor& view);

  kernels::Device& device_;
  kernels::Op op_;
  int64_t room_ = 0;  // columns behind the input
  kernels::Buffer memory_;
  kernels::Tensor result_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_KERNEL_TRIAL_H_
