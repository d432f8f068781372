// Attention by cuDNN over documents that lie one behind the other, behind one door. Implemented
// three times, like dense_matmul.h: by nvidia/cudnn_attention.cc where cudnn-frontend's headers
// were found when the program was configured, which looks for the library when it is first needed;
// by no_cudnn_attention.cc elsewhere; by tests/support/simt/cudnn_attention.cc on the host.

#ifndef QLORA_KERNELS_CUDA_CUDNN_ATTENTION_H_
#define QLORA_KERNELS_CUDA_CUDNN_ATTENTION_H_

#include <array>
#include <compare>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"

namespace qlora::gpu {

// Operands of both passes; forward has those up to kLse.
enum SdpaOperand : int { kQ, kK, kV, kO, kLse, kDout, kDq, kDk, kDv, kSdpaOperands };

// What a plan of the library depends on. Rows are tokens; a head is `head_size` bf16 in a row, in
// kLse one f32. Causal; of a window's `window` keys the last is the query's own, 0: no window.
struct SdpaProblem {
  bool backward = false;
  int64_t tokens = 0;     // the longest that a document can be, and all can be together
  int64_t documents = 0;  // as many at most
  int64_t query_heads = 0, kv_heads = 0, head_size = 0;
  float scale = 0;
  int64_t window = 0;
  std::array<int64_t, kSdpaOperands> pitch = {};  // elements from row to row

  auto operator<=>(const SdpaProblem&) const = default;
};

struct SdpaAddresses {
  std::array<void*, kSdpaOperands> data = {};
  // i32 on the device: tokens of each document, 0 for those that are not there; for each operand
  // the element with which a document begins, and the end behind the last.
  const int32_t* lengths = nullptr;                       // [documents]
  std::array<const int32_t*, kSdpaOperands> begins = {};  // [documents + 1]
  void* workspace = nullptr;  // what PrepareSdpa said, at a multiple of 256
};

// Builds the plan for a problem, once; bytes of its workspace. NotFound where the program was built
// without cuDNN or the library is not on this machine, Unimplemented where it cannot do this, or
// not with the same bytes every time.
absl::StatusOr<int64_t> PrepareSdpa(const SdpaProblem& problem, const Properties& card);
// Starts a prepared problem on the launcher's stream.
void RunSdpa(Launcher& launcher, const SdpaProblem& problem, const SdpaAddresses& addresses);

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_CUDNN_ATTENTION_H_
