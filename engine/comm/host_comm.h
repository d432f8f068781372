// Collectives among ranks whose devices' memory is the host's: a thread of its own moves and sums
// while the device computes.

#ifndef QLORA_ENGINE_COMM_HOST_COMM_H_
#define QLORA_ENGINE_COMM_HOST_COMM_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/comm/comm.h"
#include "engine/comm/control_channel.h"
#include "engine/comm/host_link.h"
#include "kernels/device.h"

namespace qlora::engine {

// Opens the link; called, as is the link's end, on the thread that will use it.
using OpenHostLink = std::function<absl::StatusOr<std::unique_ptr<HostLink>>()>;

// `device`, whose memory is the host's, and `control`, which learns of waits and progress, must
// outlive it.
absl::StatusOr<std::unique_ptr<Comm>> CreateHostComm(ControlChannel* control,
                                                     kernels::Device* device,
                                                     const OpenHostLink& open);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_HOST_COMM_H_
