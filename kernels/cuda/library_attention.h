// Attention ops that ask for the vendor's library: its tables of documents, its workspace, and what
// is left to it.

#ifndef QLORA_KERNELS_CUDA_LIBRARY_ATTENTION_H_
#define QLORA_KERNELS_CUDA_LIBRARY_ATTENTION_H_

#include "absl/status/statusor.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/attention.h"

namespace qlora::kernels::cuda {

// Bytes of `workspace`. Errors as Device::Accept.
absl::StatusOr<int64_t> LibraryAttentionBytes(const Op& op, const gpu::Properties& card);

void RunLibraryAttention(const AttentionForward& op, const Context& context);
void RunLibraryAttention(const AttentionBackward& op, const Context& context);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LIBRARY_ATTENTION_H_
