// The one place that asks which machine a job runs on.

#ifndef QLORA_ENGINE_SETUP_OPEN_DEVICE_H_
#define QLORA_ENGINE_SETUP_OPEN_DEVICE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "proto/job.pb.h"

namespace qlora::engine {

// As `job.device` says. AUTO takes a GPU, if its kernels have passed on such a card: the one whose
// number is `local_rank`, this process's among the `local_size` of the job on this machine. A GPU
// that is there and not used is worth a warning: a run on the CPU in its stead would be a surprise.
// NoDeviceError names what is missing.
absl::StatusOr<std::unique_ptr<kernels::Device>> OpenJobDevice(const proto::Job& job,
                                                               int local_rank, int local_size,
                                                               std::vector<std::string>* warnings);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_OPEN_DEVICE_H_
