// Metrics as JSONL: one object a line, keys in the order given, "step" first.
#ifndef QLORA_ENGINE_IO_METRICS_LOG_H_
#define QLORA_ENGINE_IO_METRICS_LOG_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"

namespace qlora::engine {

using MetricValue = std::variant<int64_t, double, std::string>;
using MetricFields = std::vector<std::pair<std::string, MetricValue>>;

// {"step":3,"loss":1.25}. Numbers in the shortest form that reads back the same; what JSON has no
// number for becomes the string "NaN", "Infinity" or "-Infinity".
std::string MetricLine(int64_t step, const MetricFields& fields);

class MetricsLog {
 public:
  // Goes on after `resumed_step`: lines of later steps, and a torn last line, are cut off first, so
  // that an interrupted and resumed run ends with the lines of an uninterrupted one. So are lines
  // beyond `most`. With step 0 an old file is replaced.
  static absl::StatusOr<MetricsLog> Open(Env* env, const std::string& path, int64_t resumed_step,
                                         int64_t most = std::numeric_limits<int64_t>::max());

  // Steps must not fall. The line reaches the system before it returns.
  absl::Status Write(int64_t step, const MetricFields& fields);
  // Call before a checkpoint is committed: then the log holds all lines up to it whatever happens.
  absl::Status Sync() { return file_->Sync(); }
  absl::Status Close() { return file_->Close(); }

  // Lines of the old file that were kept, and cut off.
  int64_t kept() const { return kept_; }
  int64_t cut() const { return cut_; }

 private:
  MetricsLog() = default;

  std::string path_;
  std::unique_ptr<WritableFile> file_;
  int64_t last_step_ = 0;
  int64_t kept_ = 0;
  int64_t cut_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_METRICS_LOG_H_
