// How long the card was at work on pieces: a pair of timed events around each, read when the host
// waits for the card anyway.

#ifndef QLORA_KERNELS_CUDA_PIECE_CLOCK_H_
#define QLORA_KERNELS_CUDA_PIECE_CLOCK_H_

#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/cuda/runtime.h"

namespace qlora::kernels::cuda {

class PieceClock {
 public:
  PieceClock() = default;
  PieceClock(const PieceClock&) = delete;
  ~PieceClock();

  // Calls `start`, which starts work on `stream`, between two events.
  absl::Status Time(gpu::Stream stream, absl::FunctionRef<absl::Status()> start);
  // Adds up what was timed. The stream must have been waited for.
  absl::Status Collect();
  double seconds() const { return seconds_; }

 private:
  struct Pair {
    gpu::Event begin = nullptr, end = nullptr;
  };
  std::vector<Pair> pending_, free_;
  double seconds_ = 0;
};

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_PIECE_CLOCK_H_
