// Suggestions for a name that was not found.
#ifndef QLORA_ENGINE_LORA_NEAREST_NAME_H_
#define QLORA_ENGINE_LORA_NEAREST_NAME_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qlora::engine {

// Insertions, deletions and substitutions of bytes that turn a into b (Levenshtein).
int EditDistance(absl::string_view a, absl::string_view b);

// At most three of `names`, nearest first (equals in the order given), each within half the length
// of `name`, rounded up. May be empty.
std::vector<std::string> NearestNames(absl::string_view name, absl::Span<const std::string> names);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_LORA_NEAREST_NAME_H_
