// RMSNorm with the first products of the adapters that read its result: low = (D∘y) · Aᵀ from the
// normed rows while they lie in shared memory, instead of one more read of them for each linear.
//
// A block holds 16 whole rows (8 of rows so long that shared memory has no room for more): 16 warps
// add the residual, sum squares, scale and store a row each, bit for bit as rms_norm.cu does; then
// they multiply the tile with each A by tensor cores. A is the 16-row operand of mma.sync, read
// straight from the second-level cache and shared by the tile's rows.
//
// Order of sums: K is cut into steps of 32. Warp w sums steps w, w + 16, w + 32, ... in fp32; the
// sums of the 16 warps are added in order, times 1/keep, and rounded once. It depends on K alone:
// not on the tile, the other rows or the other products.
//
// By the cost model (H100: 3.0 TB/s, second-level cache 5.5 TB/s; M = K = 4096, r = 16): with a
// residual the norm itself moves 134 MB in 45 µs. q, k and v read its 33.5 MB three times more, 33
// µs, gate and up twice, 22 µs; along, the three A of 393 kB are read for each of 256 tiles, 101 MB
// in 18 µs, the two in 12 µs. That is reckoned as if nothing overlapped: where shared memory has
// room for several tiles (K ≤ 2048) one block multiplies while another loads. Dropout costs one
// Philox call for four elements here, one for each of them in the separate product.
//
// Tiles of 32 rows would read A half as often, but do not fit as whole rows of 4096: their sum
// would have to be read again once its squares are known, 11 µs. Of the 78 µs for norm and products
// apart that leaves 65 at r = 16, where this kernel takes 63, and 74 at r = 32. Above the ranks
// that pay (Device::FirstProductRank) the products stay with the linear ops.

#ifndef QLORA_KERNELS_CUDA_RMS_NORM_PRODUCTS_H_
#define QLORA_KERNELS_CUDA_RMS_NORM_PRODUCTS_H_

#include "kernels/cuda/ops.h"
#include "kernels/cuda/rms_norm_products_layout.h"

namespace qlora::kernels::cuda {

// IsNormWithProducts(op, card) must hold.
void RunNormWithProducts(const RmsNormForward& op, const Context& context);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_RMS_NORM_PRODUCTS_H_
