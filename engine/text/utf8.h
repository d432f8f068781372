// UTF-8: checking, reading and writing of code points.
#ifndef QLORA_ENGINE_TEXT_UTF8_H_
#define QLORA_ENGINE_TEXT_UTF8_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// Offset of the first byte that does not belong to well-formed UTF-8 (surrogates, overlong forms
// and code points above U+10FFFF are not well-formed); text.size() when there is none.
size_t Utf8ErrorOffset(absl::string_view text);

// Appends `bytes`, each maximal malformed part replaced by U+FFFD (Unicode 16, 3.9, "substitution
// of maximal subparts"; the same as Rust's from_utf8_lossy and Python's errors="replace").
void AppendLossyUtf8(absl::string_view bytes, std::string& out);

void AppendUtf8(char32_t code_point, std::string& out);

struct CodePoint {
  char32_t value;
  size_t size;  // bytes
};

// The code point at `text[at]`; `text` is well-formed and `at` the start of a code point in it.
inline CodePoint Utf8At(absl::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> char32_t { return static_cast<unsigned char>(text[at + i]); };
  const char32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  if (first < 0xE0) return {(first & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (first < 0xF0) {
    return {(first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  return {(first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

// Start of the code point that ends just before `text[at]`; at > 0.
inline size_t Utf8StartBefore(absl::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_UTF8_H_
