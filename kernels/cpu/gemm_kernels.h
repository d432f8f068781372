// The instruction-set-dependent parts of products, as tables of functions: panel packing, 4-bit
// decoding, micro-tiles.
//
// A panel holds `width` rows of an operand, transposed: for each word of depth, one 32-bit word per
// row. A word is one fp32 number, or (k_per_word = 2) two neighbouring bf16 numbers, the even one
// in the low half; a row of odd depth is padded with a zero.

#ifndef QLORA_KERNELS_CPU_GEMM_KERNELS_H_
#define QLORA_KERNELS_CPU_GEMM_KERNELS_H_

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/tensor.h"
#include "quant/codebook.h"
#include "quant/spec.h"

namespace qlora::kernels::cpu {

// What goes into one panel. Storage row j stands at base + (index ? index[j] : j) * pitch_bytes.
struct PackArgs {
  const uint8_t* base = nullptr;
  int64_t pitch_bytes = 0;
  const int32_t* index = nullptr;
  DType dtype = DType::kF32;  // bf16, f16, f32
  bool round = false;         // to bf16, before `scale`
  float scale = 1.0f;         // only into fp32 words
  int64_t depth = 0;          // elements
  int valid = 0;              // rows of the panel that exist; the others become zero
  int width = 0;              // rows of the panel
  uint32_t* panel = nullptr;
};

// A 4-bit tensor ready to decode.
struct DecodeSource {
  quant::QuantSpec spec;
  const uint8_t* codes = nullptr;
  const float* absmax_f32 = nullptr;
  const uint8_t* absmax_u8 = nullptr;
  const float* nested_absmax = nullptr;
  float offset = 0.0f;
  const float* map = nullptr;
  const float* values = nullptr;  // the 16 code values
};

struct FinishArgs {
  const float* sum = nullptr;   // `count` fp32
  const float* bias = nullptr;  // fp32, or null
  float alpha = 1.0f;           // out = alpha · sum + bias (+ out)
  bool accumulate = false;
  int64_t count = 0;
  DType dtype = DType::kF32;  // bf16, f16, f32
  void* out = nullptr;
};

// Whole blocks (the last may be short) of one tensor.
struct QuantizeArgs {
  const void* in = nullptr;
  DType dtype = DType::kF32;  // bf16, f16, f32
  int64_t count = 0;
  int block_size = 0;
  const quant::EncodeRule* rule = nullptr;
  uint8_t* codes = nullptr;
  float* absmax = nullptr;
  int64_t nonfinite = 0;  // out: elements that are NaN or infinite
};

struct DropoutArgs {
  const int32_t* counter = nullptr;  // 4
  uint32_t key = 0;
  uint32_t threshold = 0;
};

struct GemmKernels {
  // C[mr][nr] (+ row pitch ldc) continues its chains over `words` words of both panels.
  struct Micro {
    int mr, nr;
    void (*run)(int64_t words, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc);
  };
  static constexpr int kMicros = 4;

  int k_per_word;
  Micro micro[kMicros];  // {wide, short} × {wide, narrow}; equal mr and nr in all tables of a
                         // vector length

  // Panel from storage rows that are the panel's rows (depth contiguous)…
  void (*pack_rows)(const PackArgs& args);
  // …or the words of depth (panel rows contiguous).
  void (*pack_columns)(const PackArgs& args);
  // Elements [begin, begin + count) as fp32, rounded to bf16 where `round`.
  void (*decode)(const DecodeSource& source, int64_t begin, int64_t count, bool round, float* out);
  // `count` elements of one row as fp32.
  void (*widen)(const void* in, DType dtype, int64_t count, bool round, float* out);
  void (*finish)(const FinishArgs& args);
  // x[i] *= kept(first + i) ? kept_scale : 0
  void (*drop)(const DropoutArgs& dropout, uint64_t first, int64_t count, float kept_scale,
               float* x);
  // out[i] = Σ_k w[k] · x[i · pitch + k] for i < rows ≤ 8, summed in lanes.
  void (*dots)(const float* w, const float* x, int64_t pitch, int rows, int64_t depth, float* out);
  // The same with w = decode(begin, depth), without storing it where shapes allow. `scratch`: depth
  // fp32.
  void (*decode_dots)(const DecodeSource& source, int64_t begin, bool round, const float* x,
                      int64_t pitch, int rows, int64_t depth, float* scratch, float* out);
  // Codes and absmax of quant/reference_quantizer.h.
  void (*quantize)(QuantizeArgs& args);
};

const GemmKernels& PortableKernels();
const GemmKernels& Avx2Kernels();
const GemmKernels& Avx512Kernels();
// Pairs of bf16 with vdpbf16ps; and with the same arithmetic (but for subnormals, which the
// instruction flushes) spelled out in AVX-512F, for tests on machines without it.
const GemmKernels& Avx512Bf16Kernels();
const GemmKernels& Avx512Bf16EmulatedKernels();

// Tables for an instruction set: fp32 words, and the ones for operands that enter as bf16.
struct KernelSet {
  const GemmKernels* f32;
  const GemmKernels* bf16;
};
KernelSet KernelsOf(Isa isa);

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_GEMM_KERNELS_H_
