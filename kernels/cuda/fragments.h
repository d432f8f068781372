// Operands of gpu::MatrixMultiplyAdd from bf16 tiles in shared memory, whichever way round they
// lie. Tiles have a pitch of an odd number of 16-byte units, so that the eight rows of an ldmatrix
// lie in different banks.

#ifndef QLORA_KERNELS_CUDA_FRAGMENTS_H_
#define QLORA_KERNELS_CUDA_FRAGMENTS_H_

#include <cstdint>

#include "gpu/primitives.h"

namespace qlora::kernels::cuda {

// The 16×16 fragment of A at (row, k) of its tile, stored [row][k], or transposed [k][row].
QLORA_DEVICE void LoadA(uint32_t (&fragment)[4], gpu::Shared<uint16_t> tile, bool transposed,
                        int pitch, int row, int k) {
  const int matrix = gpu::Lane() / 8, i = gpu::Lane() % 8;
  if (transposed) {
    gpu::LoadMatrix4Transposed(fragment,
                               tile + ((k + matrix / 2 * 8 + i) * pitch + row + matrix % 2 * 8));
  } else {
    gpu::LoadMatrix4(fragment, tile + ((row + matrix % 2 * 8 + i) * pitch + k + matrix / 2 * 8));
  }
}
// Two 16×8 fragments of B, side by side, at (column, k) of its tile, stored [column][k], or
// transposed [k][column]: words 0, 1 and words 2, 3.
QLORA_DEVICE void LoadB(uint32_t (&fragment)[4], gpu::Shared<uint16_t> tile, bool transposed,
                        int pitch, int column, int k) {
  const int matrix = gpu::Lane() / 8, i = gpu::Lane() % 8;
  if (transposed) {
    gpu::LoadMatrix4Transposed(fragment,
                               tile + ((k + matrix % 2 * 8 + i) * pitch + column + matrix / 2 * 8));
  } else {
    gpu::LoadMatrix4(fragment, tile + ((column + matrix / 2 * 8 + i) * pitch + k + matrix % 2 * 8));
  }
}

// Sums of two neighbouring 16×8 tiles as the 16×16 operand A of the next product, rounded to bf16.
QLORA_DEVICE void PackA(uint32_t (&fragment)[4], const float (&left)[4], const float (&right)[4]) {
  fragment[0] = gpu::PackBf16(left[0], left[1]);
  fragment[1] = gpu::PackBf16(left[2], left[3]);
  fragment[2] = gpu::PackBf16(right[0], right[1]);
  fragment[3] = gpu::PackBf16(right[2], right[3]);
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_FRAGMENTS_H_
