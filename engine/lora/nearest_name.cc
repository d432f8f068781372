#include "engine/lora/nearest_name.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace qlora::engine {

int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i) + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const int substituted = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::vector<std::string> NearestNames(absl::string_view name, absl::Span<const std::string> names) {
  constexpr size_t kMost = 3;
  const int limit = static_cast<int>((name.size() + 1) / 2);
  std::vector<std::pair<int, std::string>> found;
  for (const std::string& candidate : names) {
    const int distance = EditDistance(name, candidate);
    if (distance <= limit) found.emplace_back(distance, candidate);
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& x, const auto& y) { return x.first < y.first; });
  if (found.size() > kMost) found.resize(kMost);
  std::vector<std::string> nearest;
  for (auto& [distance, candidate] : found) nearest.push_back(std::move(candidate));
  return nearest;
}

}  // namespace qlora::engine
