// Which norms make their readers' first products along (rms_norm_products.h), and in which tiles.

#ifndef QLORA_KERNELS_CUDA_RMS_NORM_PRODUCTS_LAYOUT_H_
#define QLORA_KERNELS_CUDA_RMS_NORM_PRODUCTS_LAYOUT_H_

#include <cstdint>

#include "kernels/cuda/runtime.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cuda {

inline constexpr int kNormProductWarps = 16;
// Of a norm. The most that a sweep makes: three linears with 11 adapters each.
inline constexpr int kMaxNormProducts = 33;

// A block's tile: whole normed rows in shared memory, and the warps' partial sums.
struct NormTile {
  int rows = 0;       // 16 or 8; 0: a card's shared memory does not hold as many
  int64_t pitch = 0;  // of a row, in elements
  int64_t bytes = 0;
};
NormTile NormTileOf(int64_t cols, const gpu::Properties& card);

// Whether all rows of the activations begin at multiples of 16 bytes.
bool HasAlignedRows(const RmsNormForward& op);

// bf16 rows of whole vectors of 8 elements, aligned as are A's; at most kMaxNormProducts.
bool IsNormWithProducts(const RmsNormForward& op, const gpu::Properties& card);

// Device::FirstProductRank.
int64_t FirstProductRankOf(const Op& op, const gpu::Properties& card);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_RMS_NORM_PRODUCTS_LAYOUT_H_
