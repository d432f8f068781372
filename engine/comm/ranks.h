// The ranks of a job as one of them sees them: who they are, how they agree, how they sum.

#ifndef QLORA_ENGINE_COMM_RANKS_H_
#define QLORA_ENGINE_COMM_RANKS_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/comm.h"
#include "engine/comm/control_channel.h"
#include "engine/comm/host_comm.h"
#include "kernels/device.h"

namespace qlora::engine {

class Ranks {
 public:
  // Waits for all of them.
  static absl::StatusOr<std::unique_ptr<Ranks>> Join(const World& world,
                                                     const ControlOptions& options);

  int rank() const { return control_->rank(); }
  int size() const { return control_->size(); }
  bool is_first() const { return rank() == 0; }
  // The ranks of this machine, in order. The first of them reads model and data for the others.
  const std::vector<int>& neighbours() const { return control_->local_ranks(); }
  ControlChannel& control() { return *control_; }

  // What links the devices' memory: NCCL for GPUs; for CPUs MPI, unless told otherwise. `device`
  // must outlive it, which is until CloseComm() or the end of this.
  absl::Status OpenComm(kernels::Device* device, OpenHostLink link = nullptr);
  Comm& comm() { return *comm_; }
  void CloseComm() { comm_.reset(); }

 private:
  explicit Ranks(std::unique_ptr<ControlChannel> control) : control_(std::move(control)) {}

  std::unique_ptr<ControlChannel> control_;
  std::unique_ptr<Comm> comm_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_RANKS_H_
