// Text from prompts, several sequences at a time, over a cache of keys and values.

#ifndef QLORA_ENGINE_COMMANDS_GENERATE_H_
#define QLORA_ENGINE_COMMANDS_GENERATE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/step/execution.h"

namespace qlora::engine {

struct GenerationOptions {
  int64_t max_new_tokens = 0;
  double temperature = 0;  // 0: the most likely token, the lowest id where several are
  double top_p = 1;
  uint64_t seed = 0;
  std::vector<int32_t> stop_ids;  // end a sequence; included in what is returned
  int64_t course = 0;             // whose adapter it is that speaks
  // Called behind each prompt that was read and each token of the sequences that are generated
  // together; an error ends the generation. May be empty.
  std::function<absl::Status()> on_token;
};

// The tokens that follow each prompt. Each prompt has at least one token and fits into the
// run's GenerationShape::context; a sequence also ends when that is full. A sequence's tokens
// depend on its own prompt, its index and the seed alone.
absl::StatusOr<std::vector<std::vector<int32_t>>> Generate(
    Execution* execution, absl::Span<const std::vector<int32_t>> prompts,
    const GenerationOptions& options);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_GENERATE_H_
