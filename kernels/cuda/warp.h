// Sums over the lanes of a warp and over a block, in a fixed order.

#ifndef QLORA_KERNELS_CUDA_WARP_H_
#define QLORA_KERNELS_CUDA_WARP_H_

#include "gpu/primitives.h"

namespace qlora::kernels::cuda {

// The same sum in every lane: a butterfly, whose additions commute pairwise.
template <class T>
QLORA_DEVICE T WarpSum(T value) {
  QLORA_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += gpu::ShuffleXor(value, mask);
  return value;
}
QLORA_DEVICE float WarpMax(float value) {
  QLORA_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, gpu::ShuffleXor(value, mask));
  return value;
}

// The same sum in every thread of the block. `partial` holds one element a warp. Ends with a
// barrier, so that `partial` may be used again at once.
template <class T>
QLORA_DEVICE T BlockSum(T value, gpu::Shared<T> partial) {
  value = WarpSum(value);
  if (gpu::Lane() == 0) partial[gpu::Warp()] = value;
  gpu::SyncThreads();
  T sum = 0;
  for (int warp = 0; warp < gpu::ThreadCount() / 32; ++warp) {
    const T other = partial[warp];
    sum += other;
  }
  gpu::SyncThreads();
  return sum;
}
QLORA_DEVICE float BlockMax(float value, gpu::Shared<float> partial) {
  value = WarpMax(value);
  if (gpu::Lane() == 0) partial[gpu::Warp()] = value;
  gpu::SyncThreads();
  for (int warp = 0; warp < gpu::ThreadCount() / 32; ++warp) {
    const float other = partial[warp];
    value = fmaxf(value, other);
  }
  gpu::SyncThreads();
  return value;
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_WARP_H_
