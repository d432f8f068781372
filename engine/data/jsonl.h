// JSONL: one JSON object per line, UTF-8.
#ifndef QLORA_ENGINE_DATA_JSONL_H_
#define QLORA_ENGINE_DATA_JSONL_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

// No record of text is near this long; a file without line ends is.
inline constexpr int64_t kMaxJsonlLine = 64 << 20;

struct JsonlLine {
  int64_t number = 0;      // from 1, blank lines counted
  absl::string_view text;  // without the line end; borrows from the file's bytes
};

// The lines of `file` that hold anything. Line ends may be LF or CRLF, the last may be missing; a
// byte order mark at the very start is skipped, and so are blank lines. `max_lines` 0 means all.
// DataLoss "path:line: ..." for a line above kMaxJsonlLine.
absl::StatusOr<std::vector<JsonlLine>> SplitJsonl(absl::string_view file, const std::string& path,
                                                  int64_t max_lines);

// The object on a line. DataLoss "path:line: ..." for bytes that are not UTF-8, text that is not
// JSON, a key that occurs twice, and for anything but an object.
absl::StatusOr<nlohmann::json> ParseJsonlLine(const JsonlLine& line, const std::string& path);

// "path:line"
std::string JsonlPlace(const std::string& path, int64_t line);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_JSONL_H_
