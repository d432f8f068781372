#include "proto/memory_size.h"

#include <limits>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/errors.h"

namespace qlora::proto {
namespace {

struct Unit {
  const char* name;  // lower case
  int64_t bytes;
};

constexpr Unit kUnits[] = {
    {"b", 1},
    {"kb", 1'000},
    {"mb", 1'000'000},
    {"gb", 1'000'000'000},
    {"tb", 1'000'000'000'000},
    {"kib", int64_t{1} << 10},
    {"mib", int64_t{1} << 20},
    {"gib", int64_t{1} << 30},
    {"tib", int64_t{1} << 40},
};

absl::Status Refuse(absl::string_view text, absl::string_view why) {
  return BadJobError(absl::StrCat(
      "\"", absl::CHexEscape(text), "\" is not a size of memory: ", why,
      "; allowed: a number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, as in \"8GiB\""));
}

}  // namespace

absl::StatusOr<int64_t> ParseMemorySize(absl::string_view text) {
  // Exact in integers: a double would turn 9007199254740993B into its even neighbour.
  constexpr int kMaxDigits = 19;
  absl::string_view rest = absl::StripAsciiWhitespace(text);
  __int128 digits = 0, scale = 1;
  int count = 0;
  bool fraction = false;
  for (; !rest.empty(); rest.remove_prefix(1)) {
    const char c = rest.front();
    if (c == '.' && !fraction) {
      fraction = true;
    } else if (absl::ascii_isdigit(c)) {
      if (++count > kMaxDigits) return Refuse(text, "too many digits");
      digits = digits * 10 + (c - '0');
      if (fraction) scale *= 10;
    } else {
      break;
    }
  }
  if (count == 0) return Refuse(text, "no number in front");
  const std::string name = absl::AsciiStrToLower(absl::StripAsciiWhitespace(rest));
  if (name.empty()) return Refuse(text, "no unit");
  for (const Unit& unit : kUnits) {
    if (name != unit.name) continue;
    // 19 digits times 2^40 stays below 2^104.
    const __int128 bytes = digits * unit.bytes / scale;
    if (bytes == 0) return Refuse(text, "nothing");
    if (bytes > std::numeric_limits<int64_t>::max()) return Refuse(text, "beyond 2^63 - 1 bytes");
    return static_cast<int64_t>(bytes);
  }
  return Refuse(text, absl::StrCat("unknown unit \"", absl::CHexEscape(name), "\""));
}

}  // namespace qlora::proto
