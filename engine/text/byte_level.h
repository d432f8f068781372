// The byte-level alphabet of GPT-2: every byte as one printable code point.
//
// Bytes 33-126, 161-172 and 174-255 stand for themselves; the other 68, in order, for U+0100 and
// up. A space becomes U+0120 (Ġ), a newline U+010A (Ċ).
#ifndef QLORA_ENGINE_TEXT_BYTE_LEVEL_H_
#define QLORA_ENGINE_TEXT_BYTE_LEVEL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

char32_t ByteLevelChar(uint8_t byte);

// The byte that the code point stands for; nothing for a code point outside the alphabet.
std::optional<uint8_t> ByteLevelByte(char32_t code_point);

// `bytes` in the alphabet, as UTF-8.
std::string ToByteLevel(absl::string_view bytes);

// The bytes that `text` (well-formed UTF-8) spells; nothing when a code point is outside the
// alphabet.
std::optional<std::string> FromByteLevel(absl::string_view text);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_BYTE_LEVEL_H_
