// How often faults are injected, and by which seed. Ordinary tests take the smaller numbers and one
// seed; QLORA_DEEP=1 (tools/deep.sh) the larger ones and a new seed, QLORA_SEED=n a known one.
#ifndef QLORA_TESTS_SUPPORT_FAULT_SCALE_H_
#define QLORA_TESTS_SUPPORT_FAULT_SCALE_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace qlora::tests {

inline bool IsDeep() { return std::getenv("QLORA_DEEP") != nullptr; }
inline int Times(int ordinary, int deep) { return IsDeep() ? deep : ordinary; }

// Printed, so that the same faults can be had again.
inline uint64_t FaultSeed() {
  const char* const given = std::getenv("QLORA_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10)
                        : IsDeep()       ? std::random_device()()
                                         : 1;
  std::printf("QLORA_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_FAULT_SCALE_H_
