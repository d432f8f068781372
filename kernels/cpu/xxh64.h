// XXH64, after its public specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md): a fast
// 64-bit hash.

#ifndef QLORA_KERNELS_CPU_XXH64_H_
#define QLORA_KERNELS_CPU_XXH64_H_

#include <cstdint>

namespace qlora::kernels::cpu {

uint64_t Xxh64(const void* data, int64_t bytes, uint64_t seed);

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_XXH64_H_
