// The rules of the source tree that the compiler does not enforce by itself: which layer may
// include what, where CUDA and NCCL may be named, how long a file may be, what must not be left in
// it.

#ifndef QLORA_TESTS_LAYOUT_LAYOUT_RULES_H_
#define QLORA_TESTS_LAYOUT_LAYOUT_RULES_H_

#include <string>
#include <vector>

namespace qlora::layout {

inline constexpr int kMaxLines = 600;

// Whether the rules apply to a file, by its path from the project's root: code, scripts, build
// files and documents are checked, data is not.
bool IsChecked(const std::string& path);

// What a file breaks, one line each: "path:line: what, and what is allowed". Empty where all is
// well.
std::vector<std::string> Violations(const std::string& path, const std::string& text);

}  // namespace qlora::layout

#endif  // QLORA_TESTS_LAYOUT_LAYOUT_RULES_H_
