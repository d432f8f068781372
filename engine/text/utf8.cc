#include "engine/text/utf8.h"

#include <cstdint>
#include <cstring>

namespace qlora::engine {
namespace {

// Length of the well-formed sequence at `at`, or minus the length of the maximal malformed part
// there (Unicode 16, table 3-7: only the second byte's range depends on the first).
int SequenceLength(absl::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return -1;
  const int length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  for (int i = 1; i < length; ++i) {
    if (at + i >= text.size() || byte(at + i) < low || byte(at + i) > high) return -i;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace

size_t Utf8ErrorOffset(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (at + 8 <= text.size()) {
      uint64_t word;
      std::memcpy(&word, text.data() + at, 8);
      if ((word & 0x8080808080808080ull) == 0) {
        at += 8;
        continue;
      }
    }
    const int length = SequenceLength(text, at);
    if (length < 0) return at;
    at += length;
  }
  return at;
}

void AppendLossyUtf8(absl::string_view bytes, std::string& out) {
  for (size_t at = 0; at < bytes.size();) {
    const int length = SequenceLength(bytes, at);
    if (length > 0) {
      out.append(bytes.data() + at, length);
      at += length;
    } else {
      out += "\xEF\xBF\xBD";
      at += -length;
    }
  }
}

void AppendUtf8(char32_t c, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace qlora::engine
