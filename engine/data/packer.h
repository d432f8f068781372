// Packing of samples into rows of a fixed number of tokens.
#ifndef QLORA_ENGINE_DATA_PACKER_H_
#define QLORA_ENGINE_DATA_PACKER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace qlora::engine {

// Best fit decreasing: samples from the longest to the shortest (equal ones in the order of
// `order`), each into the fullest row that still has room (of equal ones the oldest), else into a
// new row. Uses at most 11/9 of the fewest rows possible, plus one (Johnson 1974). How many rows
// there are depends on the lengths alone, not on `order`.
//
// `lengths[s]` is the number of tokens of sample s, `order` names each sample once. Returns the
// rows, each with its samples in the order in which they were put there. A sample longer than
// `capacity` gets a row of its own. O(n log n).
std::vector<std::vector<int64_t>> PackBestFit(absl::Span<const int64_t> lengths,
                                              absl::Span<const int64_t> order, int64_t capacity);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_PACKER_H_
