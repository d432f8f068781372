// What a run reads as tokens: data sets, which one rank of each machine reads for the others, and a
// prompt.

#ifndef QLORA_ENGINE_SETUP_TAKE_DATA_H_
#define QLORA_ENGINE_SETUP_TAKE_DATA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// The samples of `path`, which the job's `field` names, by the rules of the job; `max_samples` 0
// means all. Errors of the rank that reads reach the others as the abort of the job. Bad data where
// a token is none of the model's.
absl::Status TakeData(const Setup& setup, absl::string_view field, const std::string& path,
                      int64_t max_samples, Dataset* to);

// The ids of the prompt that the job gives to command generate.
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Setup& setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_TAKE_DATA_H_
