// The range of every numeric field of the job, in one table.
#ifndef QLORA_PROTO_JOB_RANGES_H_
#define QLORA_PROTO_JOB_RANGES_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qlora::proto {

// Processes that train together.
inline constexpr int kMaxRanks = 1 << 16;

// min <= x <= max, without the end itself where open. NaN is never inside.
struct RealRange {
  absl::string_view path;  // "training.learning_rate"
  double min, max;
  bool min_open = false, max_open = false;
  bool Contains(double x) const;
  std::string Text() const;  // "(0, 1]"
};

// min <= x <= max.
struct IntRange {
  absl::string_view path;
  int64_t min, max;
  bool Contains(int64_t x) const { return x >= min && x <= max; }
  std::string Text() const;  // "1..4096"
};

absl::Span<const RealRange> RealRanges();
absl::Span<const IntRange> IntRanges();

// The range of the field at `path`, or nullptr. A field without one can't be checked: CheckJob
// reports it and a test over all fields fails.
const RealRange* FindRealRange(absl::string_view path);
const IntRange* FindIntRange(absl::string_view path);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_JOB_RANGES_H_
