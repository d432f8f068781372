// Unicode 16 normalization forms NFC and NFD (UAX 15).
#ifndef QLORA_ENGINE_TEXT_UNICODE_NORMAL_FORM_H_
#define QLORA_ENGINE_TEXT_UNICODE_NORMAL_FORM_H_

#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// `text` is well-formed UTF-8. Text that is already in NFC is found by a quick check and copied.
std::string ToNfc(absl::string_view text);

std::string ToNfd(absl::string_view text);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_UNICODE_NORMAL_FORM_H_
