// Collectives among GPUs, over NCCL, beside what they compute.
//
// NCCL only moves bytes: the order in which ncclAllReduce adds depends on how many ranks there are
// and how they are wired, so terms are exchanged and added here, by the tree that comm.h promises.
//
// Nothing blocks in NCCL: its communicator returns at once, and is asked until it is done or the
// job aborted; then it is aborted too.

#ifndef QLORA_ENGINE_COMM_NCCL_COMM_H_
#define QLORA_ENGINE_COMM_NCCL_COMM_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/comm/comm.h"
#include "engine/comm/control_channel.h"
#include "kernels/device.h"

namespace qlora::engine {

// Comes back when all ranks have called it. NoDevice where there is no usable NCCL. `control`,
// which hands NCCL's id round, and `device`, a GPU, must outlive it. Used on one thread, the one
// that opened the device. When it goes, what is still on its way is dropped: either all ranks have
// met since their last collective, or the job is over.
absl::StatusOr<std::unique_ptr<Comm>> CreateNcclComm(ControlChannel* control,
                                                     kernels::Device* device);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_NCCL_COMM_H_
