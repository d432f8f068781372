// Hand-written matchers for the word patterns of known model families.
//
// They are all alternatives of the same kinds - contraction, word, number, symbols, line ends,
// white space - tried in this order, so one matcher takes them as a row of options. Against a
// regular-expression engine this is about ten times as fast, and it knows Unicode 16.
#ifndef QLORA_ENGINE_TEXT_WORD_PATTERN_H_
#define QLORA_ENGINE_TEXT_WORD_PATTERN_H_

#include <memory>

#include "absl/strings/string_view.h"
#include "engine/text/split_pattern.h"

namespace qlora::engine {

// The pattern that the ByteLevel pre-tokenizer has built in.
inline constexpr absl::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The matcher for `regex`, compared as text; null when it is none of the known ones.
std::unique_ptr<SplitPattern> MakeWordPattern(absl::string_view regex);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_WORD_PATTERN_H_
