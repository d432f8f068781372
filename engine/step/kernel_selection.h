// Which of a device's variants each linear op of a run uses: chosen before the plan is made,
// written to checkpoints, read back on resume.

#ifndef QLORA_ENGINE_STEP_KERNEL_SELECTION_H_
#define QLORA_ENGINE_STEP_KERNEL_SELECTION_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "proto/job.pb.h"

namespace qlora::engine {

class KernelSelection {
 public:
  // What the choice for an op depends on, as a person reads it:
  // "linear_forward, 4096 rows, 4096 to 14336 features, 4-bit, ranks 16".
  static std::string KeyOf(const kernels::Op& op);

  // The variant chosen for an op; where none was, the one that the device's table names.
  kernels::LinearVariant For(const kernels::Op& op, const kernels::Device& device) const;
  void Choose(const kernels::Op& op, kernels::LinearVariant variant) {
    choices_[KeyOf(op)] = variant;
  }
  // By key; ops for which the device has but one variant are not among them.
  const std::map<std::string, kernels::LinearVariant>& choices() const { return choices_; }

 private:
  std::map<std::string, kernels::LinearVariant> choices_;
};

// What an earlier part of the same run chose, by key: variant names as in RunState.
using EarlierChoices = std::map<std::string, std::string>;

// Chooses for every linear op among `ops` (of a recorded program; addresses are not looked at) that
// the device can run in more than one way: as `earlier` says, else as `mode` says. A chosen variant
// other than DEQUANTIZED is run once beside that one over random numbers, or beside FUSED where the
// device has not got it; where their results lie further apart than rounding explains, the other
// takes its place and `warnings` says so. Errors are the device's.
absl::StatusOr<KernelSelection> SelectKernels(absl::Span<const kernels::Op> ops,
                                              proto::KernelSelection::Value mode,
                                              const EarlierChoices& earlier,
                                              kernels::Device* device,
                                              std::vector<std::string>* warnings);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_KERNEL_SELECTION_H_
