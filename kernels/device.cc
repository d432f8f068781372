#include "kernels/device.h"

#include <utility>

namespace qlora::kernels {

absl::Status Device::RunOnce(std::vector<Op> ops) {
  absl::StatusOr<std::unique_ptr<Piece>> piece = Prepare(std::move(ops));
  if (!piece.ok()) return piece.status();
  if (absl::Status status = (*piece)->Run(); !status.ok()) return status;
  return Synchronize();
}

}  // namespace qlora::kernels
