#include "engine/data/jsonl.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/json_file.h"
#include "engine/io/utf8.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr absl::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr absl::string_view kUtf16Marks[] = {"\xFF\xFE", "\xFE\xFF"};

bool IsBlank(absl::string_view line) {
  return line.find_first_not_of(" \t\r") == absl::string_view::npos;
}

}  // namespace

std::string JsonlPlace(const std::string& path, int64_t line) {
  return absl::StrCat(path, ":", line);
}

absl::StatusOr<std::vector<JsonlLine>> SplitJsonl(absl::string_view file, const std::string& path,
                                                  int64_t max_lines) {
  for (absl::string_view mark : kUtf16Marks) {
    if (absl::StartsWith(file, mark)) {
      return proto::BadDataError(
          absl::StrCat(JsonlPlace(path, 1),
                       ": found a UTF-16 byte order mark; allowed: UTF-8; convert the file"));
    }
  }
  if (absl::StartsWith(file, kByteOrderMark)) file.remove_prefix(kByteOrderMark.size());
  std::vector<JsonlLine> lines;
  for (int64_t number = 1; !file.empty(); ++number) {
    if (max_lines > 0 && static_cast<int64_t>(lines.size()) == max_lines) break;
    // Not looked for beyond the longest line: gigabytes without one would be read for nothing.
    const size_t end = std::min(file.substr(0, kMaxJsonlLine + 1).find('\n'), file.size());
    if (static_cast<int64_t>(end) > kMaxJsonlLine) {
      return proto::BadDataError(
          absl::StrCat(JsonlPlace(path, number), ": found a line of more than ", kMaxJsonlLine,
                       " bytes, the most that is allowed; one JSON object per line"));
    }
    absl::string_view line = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    if (IsBlank(line)) continue;
    if (line.back() == '\r') line.remove_suffix(1);
    lines.push_back({number, line});
  }
  return lines;
}

absl::StatusOr<nlohmann::json> ParseJsonlLine(const JsonlLine& line, const std::string& path) {
  const std::string place = JsonlPlace(path, line.number);
  const size_t bad = FirstInvalidUtf8(line.text);
  if (bad != std::string::npos) {
    return proto::BadDataError(
        absl::StrCat(place, ": byte ", bad, " of the line is 0x",
                     absl::Hex(static_cast<unsigned char>(line.text[bad]), absl::kZeroPad2),
                     ", which is not UTF-8 there; save the file as UTF-8"));
  }
  auto json = ParseJson(line.text, place);
  if (!json.ok()) return proto::BadDataError(json.status().message());
  if (!json->is_object()) {
    return proto::BadDataError(
        absl::StrCat(place, ": found ", json->type_name(), "; allowed: one JSON object per line"));
  }
  return json;
}

}  // namespace qlora::engine
