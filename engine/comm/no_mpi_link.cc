#include "engine/comm/mpi_link.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<HostLink>> OpenMpiLink(int, int, std::function<absl::Status()>) {
  return proto::NoDeviceError(
      "several ranks on CPUs need MPI, and this program was built without it: install "
      "libopenmpi-dev and build again");
}

}  // namespace qlora::engine
