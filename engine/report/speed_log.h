// What the plan predicted for each run on a machine and what the run made of it, kept in the user's
// cache folder: by that a prediction can be judged.
//
// A run leaves a file of its own, speed/<device>/<seconds>-<id>.json (proto/speed_record.proto),
// which appears as a whole: runs that end at the same time do not meet.

#ifndef QLORA_ENGINE_REPORT_SPEED_LOG_H_
#define QLORA_ENGINE_REPORT_SPEED_LOG_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/io/env.h"
#include "proto/speed_record.pb.h"

namespace qlora::engine {

// Runs kept of each device; older ones are removed.
inline constexpr size_t kSpeedRecords = 100;

class SpeedLog {
 public:
  // `cache_folder`: UserCacheFolder; empty: nothing is kept and nothing is there.
  SpeedLog(Env* env, std::string cache_folder)
      : env_(*env), cache_folder_(std::move(cache_folder)) {}

  absl::Status Add(const proto::SpeedRecord& record) const;
  // Those of a device, oldest first. What cannot be read, or is no record, is left out.
  std::vector<proto::SpeedRecord> Read(const std::string& device) const;

 private:
  std::string FolderOf(const std::string& device) const;
  std::vector<std::string> FilesIn(const std::string& folder) const;  // oldest first

  Env& env_;
  const std::string cache_folder_;
};

// The mean of |predicted / measured − 1|; 0 for no records.
double MeanError(absl::Span<const proto::SpeedRecord> records);
// The geometric mean of predicted / measured; 1 for no records.
double MeanRatio(absl::Span<const proto::SpeedRecord> records);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_SPEED_LOG_H_
