// kernels/cuda/nvidia/gpu/primitives.h for the host: the same names over the SIMT executor.

#ifndef QLORA_TESTS_SUPPORT_SIMT_GPU_PRIMITIVES_H_
#define QLORA_TESTS_SUPPORT_SIMT_GPU_PRIMITIVES_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "quant/float_formats.h"
#include "tests/support/simt/executor.h"

#define QLORA_KERNEL
#define QLORA_DEVICE inline
#define QLORA_CONSTANT static
#define QLORA_LAUNCH_BOUNDS(threads, blocks)
#define QLORA_UNROLL

namespace qlora::gpu {

using Where = std::source_location;

inline int ThreadX() { return simt::Here().thread; }
inline int ThreadCount() { return simt::Here().threads; }
inline int64_t BlockX() { return simt::Here().block_x; }
inline int64_t BlockY() { return simt::Here().block_y; }
inline int64_t BlockZ() { return simt::Here().block_z; }
inline int64_t GridX() { return simt::Here().grid_x; }
inline int64_t GridY() { return simt::Here().grid_y; }
inline int Lane() { return ThreadX() % simt::kWarpSize; }
inline int Warp() { return ThreadX() / simt::kWarpSize; }

inline void SyncThreads(const Where& where = Where::current()) { simt::BlockBarrier(where); }
inline void SyncWarp(const Where& where = Where::current()) {
  simt::WarpExchange(nullptr, 0, where);
}
template <class T>
T Shuffle(T value, int lane, const Where& where = Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const uint8_t* all = simt::WarpExchange(&value, sizeof(T), where);
  T result;
  std::memcpy(&result, all + (lane & 31) * simt::kExchangeBytes, sizeof(T));
  return result;
}
template <class T>
T ShuffleXor(T value, int mask, const Where& where = Where::current()) {
  return Shuffle(value, Lane() ^ mask, where);
}
inline uint32_t Ballot(bool bit, const Where& where = Where::current()) {
  const uint8_t* all = simt::WarpExchange(&bit, 1, where);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= uint32_t(all[i * simt::kExchangeBytes]) << i;
  return bits;
}
inline void AtomicAdd(int32_t* to, int32_t value) { *to += value; }
inline void AtomicMax(uint32_t* to, uint32_t value) {
  if (value > *to) *to = value;
}

struct alignas(16) Words4 {
  uint32_t w[4];
};
struct alignas(8) Words2 {
  uint32_t w[2];
};
inline Words4 LoadStream(const Words4* from, const Where& where = Where::current()) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) simt::Fault("load not aligned to 16", where);
  return *from;
}

// An element of shared memory: reads and writes are checked.
template <class T>
class SharedElement {
 public:
  SharedElement(T* at, const Where& where) : at_(at), where_(where) {}
  operator T() const {  // NOLINT: stands for a T&
    Check();
    simt::CheckSharedRead(at_, sizeof(T), where_);
    return *at_;
  }
  const SharedElement& operator=(T value) const {
    Check();
    simt::CheckSharedWrite(at_, sizeof(T), where_);
    *at_ = value;
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = T(other); }
  const SharedElement& operator+=(T value) const { return *this = T(*this) + value; }

 private:
  void Check() const {
    if (reinterpret_cast<uintptr_t>(at_) % alignof(T) != 0) {
      simt::Fault("misaligned access to shared memory", where_);
    }
  }
  T* at_;
  Where where_;
};

// An index that knows where it stands in the source: operator[] has no room for a default argument.
struct SharedIndex {
  int64_t value;
  Where where;
  SharedIndex(int64_t v, const Where& w = Where::current()) : value(v), where(w) {}  // NOLINT
};

template <class T>
struct Shared {
  T* data;
  SharedElement<T> operator[](const SharedIndex& i) const { return {data + i.value, i.where}; }
  Shared operator+(int i) const { return {data + i}; }
  template <class U>
  Shared<U> As() const {
    return {reinterpret_cast<U*>(data)};
  }
};

class SharedMemory {
 public:
  template <class T>
  Shared<T> Take(int count) {
    T* data = reinterpret_cast<T*>(simt::SharedBase() + used_);
    used_ += (count * int(sizeof(T)) + 15) & ~15;
    return {data};
  }

 private:
  int used_ = 0;
};

inline uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }
inline float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 0xf;
    uint32_t byte = uint32_t(both >> (8 * (nibble & 7))) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, spread out
    result |= byte << (8 * i);
  }
  return result;
}
inline int CountLeadingZeros(uint32_t x) { return std::countl_zero(x); }
inline float FromBf16(uint16_t bits) { return quant::F32FromBf16(bits); }
inline uint16_t ToBf16(float x) { return quant::Bf16FromF32(x); }
inline uint32_t PackBf16(float low, float high) {
  return uint32_t(ToBf16(high)) << 16 | ToBf16(low);
}
inline float FromF16(uint16_t bits) { return quant::F32FromF16(bits); }
inline uint16_t ToF16(float x) { return quant::F16FromF32(x); }
inline float FastExp(float x) { return std::exp(x); }

inline void MatrixMultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const Where& where = Where::current()) {
  const uint32_t bring[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const uint8_t* all = simt::WarpExchange(bring, sizeof(bring), where);
  const auto word = [&](int lane, int i) {
    uint32_t w;
    std::memcpy(&w, all + lane * simt::kExchangeBytes + 4 * i, 4);
    return w;
  };
  // Column k of a lies in words 0, 1 (k < 8) or 2, 3 of lane t = k % 8 / 2 of its row; row k of b
  // in word 4 or 5 likewise.
  const int row = Lane() / 4, column = Lane() % 4 * 2;
  float x[2][16], y[2][16];
  for (int t = 0; t < 4; ++t) {
    for (int upper = 0; upper < 2; ++upper) {
      const int k = 8 * upper + 2 * t;
      for (int h = 0; h < 2; ++h) {
        const uint32_t from_a = word(row * 4 + t, 2 * upper + h);
        const uint32_t from_b = word((column + h) * 4 + t, 4 + upper);
        x[h][k] = FromBf16(uint16_t(from_a));
        x[h][k + 1] = FromBf16(uint16_t(from_a >> 16));
        y[h][k] = FromBf16(uint16_t(from_b));
        y[h][k + 1] = FromBf16(uint16_t(from_b >> 16));
      }
    }
  }
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 4; ++i) d[i] += x[i / 2][k] * y[i % 2][k];
  }
}

namespace internal {
inline void LoadMatrix(uint32_t (&r)[4], Shared<uint16_t> row, bool transposed,
                       const Where& where) {
  if (reinterpret_cast<uintptr_t>(row.data) % 16 != 0) {
    simt::Fault("ldmatrix row not aligned to 16 bytes", where);
  }
  simt::CheckSharedRead(row.data, 16, where);
  const uint8_t* all = simt::WarpExchange(row.data, 16, where);
  const int group = Lane() / 4, pair = Lane() % 4 * 2;
  const auto element = [&](int matrix, int i, int j) {
    uint16_t e;
    std::memcpy(&e, all + (matrix * 8 + i) * simt::kExchangeBytes + 2 * j, 2);
    return uint32_t(e);
  };
  for (int m = 0; m < 4; ++m) {
    r[m] = transposed ? element(m, pair, group) | element(m, pair + 1, group) << 16
                      : element(m, group, pair) | element(m, group, pair + 1) << 16;
  }
}
}  // namespace internal
inline void LoadMatrix4(uint32_t (&r)[4], Shared<uint16_t> row,
                        const Where& where = Where::current()) {
  internal::LoadMatrix(r, row, false, where);
}
inline void LoadMatrix4Transposed(uint32_t (&r)[4], Shared<uint16_t> row,
                                  const Where& where = Where::current()) {
  internal::LoadMatrix(r, row, true, where);
}

template <class T>
void CopyAsync16(Shared<T> to, const void* from, bool valid,
                 const Where& where = Where::current()) {
  simt::CopyAsync(to.data, from, valid, where);
}
inline void CopyAsyncCommit() { simt::CopyAsyncCommit(); }
template <int kPending>
void CopyAsyncWait() {
  simt::CopyAsyncWait(kPending);
}

}  // namespace qlora::gpu

#endif  // QLORA_TESTS_SUPPORT_SIMT_GPU_PRIMITIVES_H_
