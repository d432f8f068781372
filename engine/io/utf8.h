// UTF-8 as the Unicode standard defines it: no overlong form, no surrogate, nothing above U+10FFFF.
#ifndef QLORA_ENGINE_IO_UTF8_H_
#define QLORA_ENGINE_IO_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// Place of the first byte of the first sequence that is not valid; npos if all is.
size_t FirstInvalidUtf8(absl::string_view text);

// Appends the encoding of `code`, a Unicode scalar value.
void AppendUtf8(uint32_t code, std::string* out);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_UTF8_H_
