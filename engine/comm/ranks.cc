#include "engine/comm/ranks.h"

#include <utility>

#include "engine/comm/mpi_link.h"
#include "engine/comm/nccl_comm.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<Ranks>> Ranks::Join(const World& world,
                                                   const ControlOptions& options) {
  absl::StatusOr<std::unique_ptr<ControlChannel>> control = ControlChannel::Join(world, options);
  if (!control.ok()) return control.status();
  return std::unique_ptr<Ranks>(new Ranks(*std::move(control)));
}

absl::Status Ranks::OpenComm(kernels::Device* device, OpenHostLink link) {
  if (link == nullptr) {
    link = [this] {
      return OpenMpiLink(rank(), size(), [this] { return control_->CheckOthers(); });
    };
  }
  absl::StatusOr<std::unique_ptr<Comm>> comm = device->info().is_host
                                                   ? CreateHostComm(control_.get(), device, link)
                                                   : CreateNcclComm(control_.get(), device);
  if (!comm.ok()) return comm.status();
  comm_ = *std::move(comm);
  return absl::OkStatus();
}

}  // namespace qlora::engine
