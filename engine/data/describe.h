// The data as the model will see it, for people.
#ifndef QLORA_ENGINE_DATA_DESCRIBE_H_
#define QLORA_ENGINE_DATA_DESCRIBE_H_

#include <string>

#include "absl/strings/string_view.h"
#include "engine/data/dataset.h"
#include "engine/text/tokenizer.h"

namespace qlora::engine {

// The text of a sample, control tokens included, each run of trained tokens between `open` and
// `close` (an escape sequence and its end, or brackets).
std::string DescribeSample(const Sample& sample, const Tokenizer& tokenizer, absl::string_view open,
                           absl::string_view close);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_DESCRIBE_H_
