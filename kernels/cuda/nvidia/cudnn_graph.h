// An attention problem as cudnn-frontend's graph: what needs the library, but no card.

#ifndef QLORA_KERNELS_CUDA_NVIDIA_CUDNN_GRAPH_H_
#define QLORA_KERNELS_CUDA_NVIDIA_CUDNN_GRAPH_H_

#include <cudnn_frontend.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cudnn_attention.h"

namespace qlora::gpu {

// Looks for libcudnn once. NotFound where it is not on this machine, or is too old.
absl::Status LoadCudnn();
// "9.19.0"
std::string CudnnVersion();

// Tensor ids of a graph: an operand's is its number, its begins' kBegins behind it.
inline constexpr int64_t kBegins = kSdpaOperands, kLengths = 2 * kSdpaOperands;

// Validated. `sm`: compute capability times ten. Unimplemented with the frontend's own words where
// it refuses. LoadCudnn must have been OK.
absl::StatusOr<std::shared_ptr<cudnn_frontend::graph::Graph>> SdpaGraph(const SdpaProblem& problem,
                                                                        int sm);

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_NVIDIA_CUDNN_GRAPH_H_
