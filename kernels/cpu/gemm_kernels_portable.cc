// Four lanes in whatever the x86-64 baseline offers.

#include <cstdint>

namespace qlora::kernels::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));

  // Two roundings: without hardware an fma is a library call.
  static F Fma(F a, F b, F c) { return a * b + c; }
  static F WidenF16(const uint16_t* p);
  static void StoreF16(uint16_t* p, F x);
  static void StoreLanes(uint32_t* p, U v, int lanes) {
    for (int i = 0; i < lanes; ++i) p[i] = v[i];
  }
  struct Table {
    float value[16];
    float operator[](uint32_t i) const { return value[i]; }
  };
  static Table MakeTable(const float* table) {
    Table t;
    __builtin_memcpy(t.value, table, sizeof(t.value));
    return t;
  }
  static void Decode16(const Table& table, const uint8_t* codes, F (&out)[4]) {
    for (int i = 0; i < 4; ++i) {
      const uint8_t *a = codes + 2 * i, *b = a + 1;
      out[i] = F{table[*a >> 4], table[*a & 15], table[*b >> 4], table[*b & 15]};
    }
  }
  static F Lookup(const Table& table, U i) {
    return F{table[i[0]], table[i[1]], table[i[2]], table[i[3]]};
  }
  static void Multiply(U a, uint32_t b, U* high, U* low) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t product = uint64_t{a[i]} * b;
      (*high)[i] = uint32_t(product >> 32);
      (*low)[i] = uint32_t(product);
    }
  }
};

}  // namespace
}  // namespace qlora::kernels::cpu

#include "kernels/cpu/gemm_kernels_inl.h"

namespace qlora::kernels::cpu {
namespace {

F Vec::WidenF16(const uint16_t* p) {
  return F{F16ToF32(p[0]), F16ToF32(p[1]), F16ToF32(p[2]), F16ToF32(p[3])};
}
void Vec::StoreF16(uint16_t* p, F x) {
  for (int i = 0; i < kLanes; ++i) p[i] = F32ToF16(x[i]);
}

}  // namespace

const GemmKernels& PortableKernels() {
  static constexpr GemmKernels kKernels = MakeKernels<MultiplyAddF32, 1, 4, 4, 2>();
  return kKernels;
}

}  // namespace qlora::kernels::cpu
