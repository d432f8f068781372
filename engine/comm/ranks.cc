#include "engine/comm/ranks.h"

#include <utility>

#include "engine/comm/mpi_link.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<Ranks>> Ranks::Join(const World& world,
                                                   const ControlOptions& options) {
  absl::StatusOr<std::unique_ptr<ControlChannel>> control = ControlChannel::Join(world, options);
  if (!control.ok()) return control.status();
  return std::unique_ptr<Ranks>(new Ranks(*std::move(control)));
}

absl::Status Ranks::OpenComm(kernels::Device* device, HostComm::OpenLink link) {
  if (!device->info().is_host) {
    return proto::NoDeviceError(
        "several ranks train on CPUs only so far: set device: CPU, or start one process");
  }
  if (link == nullptr) {
    link = [this] {
      return OpenMpiLink(rank(), size(), [this] { return control_->CheckOthers(); });
    };
  }
  absl::StatusOr<std::unique_ptr<HostComm>> comm = HostComm::Create(control_.get(), device, link);
  if (!comm.ok()) return comm.status();
  comm_ = *std::move(comm);
  return absl::OkStatus();
}

}  // namespace qlora::engine
