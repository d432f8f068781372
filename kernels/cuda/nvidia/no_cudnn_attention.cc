// Stands in for cuDNN where the program was built without cudnn-frontend's headers.

#include "kernels/cuda/cudnn_attention.h"

namespace qlora::gpu {
namespace {

absl::Status NotBuilt() {
  return absl::NotFoundError(
      "this program was built without cuDNN (cudnn_frontend.h and cudnn.h were not found when it "
      "was configured; QLORA_CUDNN_FRONTEND names their folders)");
}

}  // namespace

absl::StatusOr<int64_t> PrepareSdpa(const SdpaProblem&, const Properties&) { return NotBuilt(); }
void RunSdpa(Launcher& launcher, const SdpaProblem&, const SdpaAddresses&) {
  launcher.Fail(NotBuilt());
}

}  // namespace qlora::gpu
