// SHA256SUMS beside a run's result: what its weights and their config were when they were written,
// in the form that `sha256sum -c` reads.

#ifndef QLORA_ENGINE_CHECKPOINT_RESULT_SUMS_H_
#define QLORA_ENGINE_CHECKPOINT_RESULT_SUMS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io/env.h"

namespace qlora::engine {

inline constexpr char kResultSumsFile[] = "SHA256SUMS";

struct ResultSum {
  std::string name;    // of a file in the folder
  std::string sha256;  // 64 hex digits
};

// Reads each file and writes their sums, atomically.
absl::Status WriteResultSums(Env* env, const std::string& folder,
                             absl::Span<const std::string> names);
// NotFound where there is no such file, DataLoss where it is none.
absl::StatusOr<std::vector<ResultSum>> ReadResultSums(Env* env, const std::string& folder);
// DataLoss where the file lacks or is another.
absl::Status CheckResultSum(Env* env, const std::string& folder, const ResultSum& sum);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_RESULT_SUMS_H_
