// SideQueue: work of a device beside its pieces, in an order of its own. For what goes between
// devices while they compute.

#ifndef QLORA_KERNELS_SIDE_QUEUE_H_
#define QLORA_KERNELS_SIDE_QUEUE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/op_list.h"

namespace qlora::kernels {

class SideQueue {
 public:
  virtual ~SideQueue() = default;

  // What is put on the queue from now on runs behind everything that the device was told before.
  virtual absl::Status Follow() = 0;
  // Puts ops on the queue; none of them may need a workspace.
  virtual absl::Status Run(const std::vector<Op>& ops) = 0;
  // Puts a mark behind what is on the queue.
  virtual absl::Status Mark() = 0;
  // How many marks the device has passed: what it is told from now on finds the results of what
  // stands before them. Never waits. Errors are those of the device.
  virtual absl::StatusOr<int64_t> Passed() = 0;
  // As the device's own libraries know it: a cudaStream_t.
  virtual void* native() const = 0;
};

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_SIDE_QUEUE_H_
