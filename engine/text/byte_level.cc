#include "engine/text/byte_level.h"

#include "engine/text/utf8.h"

namespace qlora::engine {
namespace {

constexpr int kLastChar = 0x100 + 67;

struct Alphabet {
  char32_t chars[256];
  int16_t bytes[kLastChar + 1];  // -1: not in the alphabet

  Alphabet() {
    for (int16_t& byte : bytes) byte = -1;
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool self = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      chars[b] = self ? static_cast<char32_t>(b) : next++;
      bytes[chars[b]] = static_cast<int16_t>(b);
    }
  }
};

const Alphabet& TheAlphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

}  // namespace

char32_t ByteLevelChar(uint8_t byte) { return TheAlphabet().chars[byte]; }

std::optional<uint8_t> ByteLevelByte(char32_t c) {
  if (c > kLastChar || TheAlphabet().bytes[c] < 0) return std::nullopt;
  return static_cast<uint8_t>(TheAlphabet().bytes[c]);
}

std::string ToByteLevel(absl::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (const char b : bytes) AppendUtf8(ByteLevelChar(static_cast<uint8_t>(b)), out);
  return out;
}

std::optional<std::string> FromByteLevel(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = Utf8At(text, at);
    at += c.size;
    const std::optional<uint8_t> byte = ByteLevelByte(c.value);
    if (!byte) return std::nullopt;
    out += static_cast<char>(*byte);
  }
  return out;
}

}  // namespace qlora::engine
