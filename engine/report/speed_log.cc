#include "engine/report/speed_log.h"

#include <google/protobuf/util/json_util.h>

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "engine/io/atomic_file.h"
#include "engine/report/report_json.h"

namespace qlora::engine {
namespace {

constexpr char kSuffix[] = ".json";
constexpr int64_t kMaxRecordBytes = 64 << 10;

bool IsSound(const proto::SpeedRecord& record) {
  return std::isfinite(record.tokens_per_second()) && record.tokens_per_second() > 0 &&
         std::isfinite(record.predicted_tokens_per_second()) &&
         record.predicted_tokens_per_second() > 0;
}

}  // namespace

std::string SpeedLog::FolderOf(const std::string& device) const {
  std::string name;
  for (const char c : device) name += absl::ascii_isalnum(c) ? c : '-';
  return JoinPath(JoinPath(cache_folder_, "speed"), name);
}

std::vector<std::string> SpeedLog::FilesIn(const std::string& folder) const {
  absl::StatusOr<std::vector<std::string>> names = env_.List(folder);
  if (!names.ok()) return {};
  std::erase_if(*names, [](const std::string& name) {
    return !absl::ascii_isdigit(name[0]) || !name.ends_with(kSuffix);
  });
  return *std::move(names);
}

absl::Status SpeedLog::Add(const proto::SpeedRecord& record) const {
  if (cache_folder_.empty() || !IsSound(record)) return absl::OkStatus();
  absl::StatusOr<std::string> json = ReportJson(record);
  if (!json.ok()) return json.status();
  const std::string folder = FolderOf(record.device());
  if (absl::Status s = env_.CreateFolders(folder); !s.ok()) return s;
  // By name is by time.
  const std::string name =
      absl::StrFormat("%012.0f-%s%s", record.unix_seconds(), env_.RandomId(), kSuffix);
  if (absl::Status s = AtomicWriteFile(&env_, JoinPath(folder, name), *json); !s.ok()) return s;
  const std::vector<std::string> files = FilesIn(folder);
  for (size_t i = 0; i + kSpeedRecords < files.size(); ++i) {
    // Another run may have removed it.
    absl::Status s = env_.RemoveFile(JoinPath(folder, files[i]));
    if (!s.ok() && !absl::IsNotFound(s)) return s;
  }
  return absl::OkStatus();
}

std::vector<proto::SpeedRecord> SpeedLog::Read(const std::string& device) const {
  std::vector<proto::SpeedRecord> records;
  if (cache_folder_.empty()) return records;
  const std::string folder = FolderOf(device);
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  for (const std::string& file : FilesIn(folder)) {
    const absl::StatusOr<std::string> json = env_.ReadFile(JoinPath(folder, file), kMaxRecordBytes);
    proto::SpeedRecord record;
    if (!json.ok() || !google::protobuf::util::JsonStringToMessage(*json, &record, options).ok()) {
      continue;
    }
    // Devices of similar names share a folder.
    if (IsSound(record) && record.device() == device) records.push_back(std::move(record));
  }
  return records;
}

double MeanError(absl::Span<const proto::SpeedRecord> records) {
  if (records.empty()) return 0;
  double sum = 0;
  for (const proto::SpeedRecord& record : records) {
    sum += std::abs(record.predicted_tokens_per_second() / record.tokens_per_second() - 1);
  }
  return sum / double(records.size());
}

double MeanRatio(absl::Span<const proto::SpeedRecord> records) {
  if (records.empty()) return 1;
  double logarithms = 0;
  for (const proto::SpeedRecord& record : records) {
    logarithms += std::log(record.predicted_tokens_per_second() / record.tokens_per_second());
  }
  return std::exp(logarithms / double(records.size()));
}

}  // namespace qlora::engine
