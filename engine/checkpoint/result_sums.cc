#include "engine/checkpoint/result_sums.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/io/atomic_file.h"
#include "engine/io/sha256.h"

namespace qlora::engine {
namespace {

constexpr int64_t kMaxSumsBytes = 1 << 20;
constexpr size_t kDigits = 64;
constexpr absl::string_view kBetween = "  ";

bool IsSum(absl::string_view line) {
  const absl::string_view digits = line.substr(0, kDigits);
  return line.size() > kDigits + kBetween.size() &&
         line.substr(kDigits, kBetween.size()) == kBetween &&
         IsPlainName(line.substr(kDigits + kBetween.size())) &&
         std::all_of(digits.begin(), digits.end(), [](char c) { return absl::ascii_isxdigit(c); });
}

}  // namespace

absl::Status WriteResultSums(Env* env, const std::string& folder,
                             absl::Span<const std::string> names) {
  std::string text;
  for (const std::string& name : names) {
    absl::StatusOr<std::string> sha256 = Sha256File(env, JoinPath(folder, name));
    if (!sha256.ok()) return sha256.status();
    absl::StrAppend(&text, *sha256, kBetween, name, "\n");
  }
  return AtomicWriteFile(env, JoinPath(folder, kResultSumsFile), text);
}

absl::StatusOr<std::vector<ResultSum>> ReadResultSums(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, kResultSumsFile);
  absl::StatusOr<std::string> text = env->ReadFile(path, kMaxSumsBytes);
  if (!text.ok()) return text.status();
  std::vector<ResultSum> sums;
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    if (!IsSum(line)) {
      return absl::DataLossError(
          absl::StrCat(path, ": line ", sums.size() + 1, " is no SHA-256 and file name"));
    }
    sums.push_back({std::string(line.substr(kDigits + kBetween.size())),
                    std::string(line.substr(0, kDigits))});
  }
  return sums;
}

absl::Status CheckResultSum(Env* env, const std::string& folder, const ResultSum& sum) {
  const std::string path = JoinPath(folder, sum.name);
  absl::StatusOr<std::string> sha256 = Sha256File(env, path);
  if (absl::IsNotFound(sha256.status())) return absl::DataLossError(absl::StrCat(path, " lacks"));
  if (!sha256.ok()) return sha256.status();
  if (*sha256 == sum.sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path,
                                          " is not the file that the run wrote: its SHA-256 is ",
                                          *sha256, ", ", kResultSumsFile, " has ", sum.sha256));
}

}  // namespace qlora::engine
