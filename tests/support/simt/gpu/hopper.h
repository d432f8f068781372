// kernels/cuda/nvidia/gpu/hopper.h for the host: the same names over the SIMT executor.

#ifndef QLORA_TESTS_SUPPORT_SIMT_GPU_HOPPER_H_
#define QLORA_TESTS_SUPPORT_SIMT_GPU_HOPPER_H_

#include <cstring>

#include "gpu/primitives.h"
#include "kernels/cuda/runtime.h"
#include "kernels/tensor.h"
#include "tests/support/simt/hopper.h"

#define QLORA_GRID_CONSTANT

namespace qlora::gpu {

inline constexpr bool kHasWarpgroups = true;

using SharedAddress = uint32_t;
template <class T>
SharedAddress AddressOf(Shared<T> s) {
  return simt::SharedAddressOf(s.data);
}

struct TensorMap {
  kernels::ConstTensor matrix;
  int box_rows;
};
inline TensorMap MakeTensorMap(Launcher& launcher, const char* name,
                               const kernels::ConstTensor& matrix, int box_rows) {
  const bool aligned = reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
                       (matrix.rows <= 1 || matrix.pitch % 8 == 0);
  if (!aligned || matrix.rows < 1 || matrix.cols < 1 || box_rows < 1 || box_rows > 256) {
    launcher.Fail(absl::InternalError(std::string(name) + ": no tensor map for such a matrix"));
  }
  return {matrix, box_rows};
}

inline void BarrierInit(SharedAddress b, int arrivals, const Where& w = Where::current()) {
  simt::BarrierInit(b, arrivals, w);
}
inline void BarrierInitFence() {}
inline void BarrierArrive(SharedAddress b, const Where& w = Where::current()) {
  simt::BarrierArrive(b, 0, w);
}
inline void BarrierArriveExpect(SharedAddress b, uint32_t bytes,
                                const Where& w = Where::current()) {
  simt::BarrierArrive(b, bytes, w);
}
inline void BarrierWait(SharedAddress b, uint32_t parity, const Where& w = Where::current()) {
  simt::BarrierWait(b, parity, w);
}
inline void NamedBarrier(int number, int threads, const Where& w = Where::current()) {
  simt::NamedBarrier(number, threads, w);
}
inline void TensorLoad(SharedAddress to, const TensorMap& map, int row, int column, SharedAddress b,
                       const Where& w = Where::current()) {
  simt::TensorLoad(to, map.matrix, map.box_rows, row, column, b, w);
}
inline void FenceAsyncProxy() { simt::FenceAsyncProxy(); }

inline void StoreShared(SharedAddress to, const Words4& v, const Where& w = Where::current()) {
  simt::StoreShared(to, &v, w);
}
inline Words4 LoadShared(SharedAddress from, const Where& w = Where::current()) {
  Words4 v;
  simt::LoadShared(from, &v, w);
  return v;
}
// Element (i, j) of matrix m is of lane 4i + j/2, half j % 2 of its word m; transposed it is (j, i)
// of what is stored.
inline void LoadTransposed(uint32_t (&r)[4], SharedAddress row, const Where& w = Where::current()) {
  uint8_t bytes[16];
  simt::LoadShared(row, bytes, w);
  const uint8_t* all = simt::WarpExchange(bytes, 16, w);
  for (int m = 0; m < 4; ++m) {
    r[m] = 0;
    for (int e = 0; e < 2; ++e) {
      uint16_t x;
      const int stored_row = m * 8 + Lane() % 4 * 2 + e;
      std::memcpy(&x, all + stored_row * simt::kExchangeBytes + Lane() / 4 * 2, 2);
      r[m] |= uint32_t(x) << (16 * e);
    }
  }
}
inline void StoreTransposed(SharedAddress row, const uint32_t (&r)[4],
                            const Where& w = Where::current()) {
  const uint8_t* all = simt::WarpExchange(r, 16, w);
  const int matrix = Lane() / 8, stored_row = Lane() % 8;
  uint16_t elements[8];
  for (int j = 0; j < 8; ++j) {
    const int lane = j * 4 + stored_row / 2;
    std::memcpy(&elements[j], all + lane * simt::kExchangeBytes + matrix * 4 + stored_row % 2 * 2,
                2);
  }
  simt::StoreShared(row, elements, w);
}

template <int kRegisters>
void RegistersDown() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void RegistersUp() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
inline void WarpgroupFence() { simt::WarpgroupFence(); }
inline void WarpgroupCommit(const Where& w = Where::current()) { simt::WarpgroupCommit(w); }
template <int kPending, int kCount>
void WarpgroupWait(float (&)[kCount], const Where& w = Where::current()) {
  simt::WarpgroupWait(kPending, w);
}
template <bool kTransposeA, int kCount>
void WarpgroupMultiplyAdd(float (&d)[kCount], uint64_t a, uint64_t b,
                          const Where& w = Where::current()) {
  simt::WarpgroupMultiplyAdd(d, kCount, a, b, kTransposeA, w);
}

}  // namespace qlora::gpu

#endif  // QLORA_TESTS_SUPPORT_SIMT_GPU_HOPPER_H_
