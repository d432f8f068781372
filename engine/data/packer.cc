#include "engine/data/packer.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

namespace qlora::engine {

std::vector<std::vector<int64_t>> PackBestFit(absl::Span<const int64_t> lengths,
                                              absl::Span<const int64_t> order, int64_t capacity) {
  std::vector<int64_t> longest_first(order.begin(), order.end());
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<int64_t>> rows;
  std::set<std::pair<int64_t, int64_t>> room;  // (tokens free, row)
  for (const int64_t sample : longest_first) {
    const int64_t length = lengths[sample];
    const auto fullest = room.lower_bound({length, 0});
    int64_t free = capacity;
    int64_t row = static_cast<int64_t>(rows.size());
    if (fullest != room.end()) {
      std::tie(free, row) = *fullest;
      room.erase(fullest);
    } else {
      rows.emplace_back();
    }
    rows[row].push_back(sample);
    if (free > length) room.insert({free - length, row});
  }
  return rows;
}

}  // namespace qlora::engine
