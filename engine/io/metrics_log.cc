#include "engine/io/metrics_log.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"

namespace qlora::engine {
namespace {

// A record of a run of a million steps has about 300 bytes.
constexpr int64_t kMaxLogBytes = int64_t{1} << 30;

std::string JsonString(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string JsonNumber(double value) {
  if (std::isnan(value)) return "\"NaN\"";
  if (std::isinf(value)) return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  char text[32];
  const auto result = std::to_chars(text, text + sizeof(text), value);
  std::string out(text, result.ptr);
  // 3 would read back as an integer.
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

// The step of a line that holds a whole record; -1 for anything else.
int64_t StepOfLine(absl::string_view line) {
  const nlohmann::json record =
      nlohmann::json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return -1;
  const auto step = record.find("step");
  if (step == record.end() || !step->is_number_integer()) return -1;
  return step->get<int64_t>();
}

}  // namespace

std::string MetricLine(int64_t step, const MetricFields& fields) {
  std::string line = absl::StrCat("{\"step\":", step);
  for (const auto& [key, value] : fields) {
    absl::StrAppend(&line, ",", JsonString(key), ":");
    if (const int64_t* integer = std::get_if<int64_t>(&value)) {
      absl::StrAppend(&line, *integer);
    } else if (const double* number = std::get_if<double>(&value)) {
      absl::StrAppend(&line, JsonNumber(*number));
    } else {
      absl::StrAppend(&line, JsonString(std::get<std::string>(value)));
    }
  }
  return line + "}\n";
}

absl::StatusOr<MetricsLog> MetricsLog::Open(Env* env, const std::string& path, int64_t resumed_step,
                                            int64_t most) {
  MetricsLog log;
  log.path_ = path;
  log.last_step_ = resumed_step;
  std::string kept;
  bool existed = false;
  if (auto old = env->ReadFile(path, kMaxLogBytes); old.ok()) {
    existed = true;
    absl::string_view rest = *old;
    size_t kept_bytes = 0;
    bool keeping = resumed_step > 0;
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      const size_t length = end == absl::string_view::npos ? rest.size() : end + 1;
      // What follows the first line that is not ours to keep was written later still.
      if (keeping) {
        const int64_t step = end == absl::string_view::npos ? -1 : StepOfLine(rest.substr(0, end));
        keeping = step >= 0 && step <= resumed_step && log.kept_ < most;
      }
      if (keeping) {
        kept_bytes += length;
        ++log.kept_;
      } else {
        ++log.cut_;
      }
      rest.remove_prefix(length);
    }
    kept = old->substr(0, kept_bytes);
  } else if (!absl::IsNotFound(old.status())) {
    return old.status();
  }
  if (!existed || log.cut_ > 0) {
    absl::Status status = AtomicWriteFile(env, path, kept);
    if (!status.ok()) return status;
  }
  auto file = env->NewAppendableFile(path);
  if (!file.ok()) return file.status();
  log.file_ = *std::move(file);
  return log;
}

absl::Status MetricsLog::Write(int64_t step, const MetricFields& fields) {
  if (step < last_step_) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": step ", step, " after step ", last_step_));
  }
  last_step_ = step;
  return file_->Append(MetricLine(step, fields));
}

}  // namespace qlora::engine
