// Orders that are functions of (seed, epoch): nothing is drawn, so nothing has to be saved.
#ifndef QLORA_ENGINE_DATA_SHUFFLE_H_
#define QLORA_ENGINE_DATA_SHUFFLE_H_

#include <cstdint>
#include <vector>

namespace qlora::engine {

// Orders of one run that must not repeat each other.
enum class ShuffleStream : uint32_t { kSamples = 1, kRows = 2, kSplit = 3 };

// A permutation of 0..n-1: Fisher-Yates from the end, where step i takes the 64 low bits of
// Philox({i low, i high, epoch, stream}, {seed low, seed high ^ kKey}) times (i + 1), divided by
// 2^64. The bias of an element is below n / 2^64. Golden values are in the tests: a change here
// would change what a resumed run reads.
std::vector<int64_t> Permutation(int64_t n, uint64_t seed, uint32_t epoch, ShuffleStream stream);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_SHUFFLE_H_
