#include "engine/data/shuffle.h"

#include <numeric>
#include <utility>

#include "kernels/philox.h"

namespace qlora::engine {
namespace {

// Keeps these numbers apart from those of dropout and initialization, which share the seed.
constexpr uint32_t kKey = 0x64617461;  // "data"

}  // namespace

std::vector<int64_t> Permutation(int64_t n, uint64_t seed, uint32_t epoch, ShuffleStream stream) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = n - 1; i > 0; --i) {
    const auto bits =
        kernels::Philox({static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), epoch,
                         static_cast<uint32_t>(stream)},
                        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32) ^ kKey});
    const uint64_t random = bits[0] | static_cast<uint64_t>(bits[1]) << 32;
    const auto j = static_cast<int64_t>(static_cast<unsigned __int128>(random) * (i + 1) >> 64);
    std::swap(order[i], order[j]);
  }
  return order;
}

}  // namespace qlora::engine
