// The 8-bit dynamic code in kernels: a table of values and one of borders, in shared memory.

#ifndef QLORA_KERNELS_CUDA_DYNAMIC_CODE_H_
#define QLORA_KERNELS_CUDA_DYNAMIC_CODE_H_

#include <cstdint>

#include "gpu/primitives.h"
#include "kernels/dynamic_code.h"

namespace qlora::kernels::cuda {

// One of the two tables of kernels/dynamic_code.h as a kernel's argument.
struct CodeTable {
  float entry[256];
};
inline CodeTable TableOf(const float* entries) {
  CodeTable table;
  for (int i = 0; i < 256; ++i) table.entry[i] = entries[i];
  return table;
}

// All threads of the block take part; a barrier must follow.
QLORA_DEVICE void FillTable(const CodeTable& from, gpu::Shared<float> to) {
  for (int i = gpu::ThreadX(); i < 256; i += gpu::ThreadCount()) to[i] = from.entry[i];
}

// How many of the 255 borders `next` are at most x: quant::EncodeDynamic for every float. (The last
// border is a NaN, which nothing reaches; x = NaN gets code 0.)
QLORA_DEVICE uint8_t EncodeDynamic(gpu::Shared<float> next, float x) {
  int code = 0;
  QLORA_UNROLL
  for (int step = 128; step > 0; step /= 2) {
    const float border = next[code + step - 1];
    if (x >= border) code += step;
  }
  return uint8_t(code);
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_DYNAMIC_CODE_H_
