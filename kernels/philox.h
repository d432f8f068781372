// Counted randomness: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011). A number is a function of (seed, step, micro-batch, key, element): nothing hidden has
// to be saved or replayed.

#ifndef QLORA_KERNELS_PHILOX_H_
#define QLORA_KERNELS_PHILOX_H_

#include <array>
#include <cstdint>

namespace qlora::kernels {

// Ten rounds over a 128-bit counter under a 64-bit key.
constexpr std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter,
                                         std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {uint32_t(product1 >> 32) ^ counter[1] ^ key[0], uint32_t(product1),
               uint32_t(product0 >> 32) ^ counter[3] ^ key[1], uint32_t(product0)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// The 32 random bits of dropout element `element` (= row · K + column) of tensor `key`. `counter`
// is the i32 [seed low, seed high, step, micro-batch] of Dropout::counter. One Philox call serves
// four neighbouring elements.
constexpr std::array<uint32_t, 4> DropoutBits(const int32_t counter[4], uint32_t key,
                                              uint64_t element_group) {
  return Philox({uint32_t(element_group), uint32_t(element_group >> 32) ^ (key << 8),
                 uint32_t(counter[2]), uint32_t(counter[3])},
                {uint32_t(counter[0]), uint32_t(counter[1])});
}

// An element is dropped iff its 32 bits are below this: probability · 2³², rounded down.
constexpr uint32_t DropoutThreshold(float probability) {
  return uint32_t(double(probability) * 4294967296.0);
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_PHILOX_H_
