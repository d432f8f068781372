#include "engine/report/html_text.h"

#include "engine/text/utf8.h"

namespace qlora::engine {
namespace {

bool IsControl(char32_t c) {
  return (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7f && c < 0xa0);
}

// LRM, RLM, ALM; embeddings, overrides and isolates.
bool TurnsDirection(char32_t c) {
  return c == 0x200e || c == 0x200f || c == 0x061c || (c >= 0x202a && c <= 0x202e) ||
         (c >= 0x2066 && c <= 0x2069);
}

// Ems, of a sans-serif face.
double WidthOf(char32_t c) {
  if (c >= 0x2e80) return 1.05;  // ideographs, kana, Hangul, emoji: a full em
  if (c == 'm' || c == 'w' || c == 'M' || c == 'W' || c == '@' || c == '%') return 1.05;
  if (c >= 'A' && c <= 'Z') return 0.78;
  return 0.64;
}

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  std::string valid, out;
  AppendLossyUtf8(text, valid);
  for (size_t at = 0; at < valid.size();) {
    const CodePoint c = Utf8At(valid, at);
    if (c.value == '&') {
      out += "&amp;";
    } else if (c.value == '<') {
      out += "&lt;";
    } else if (c.value == '>') {
      out += "&gt;";
    } else if (c.value == '"') {
      out += "&quot;";
    } else if (c.value == '\'') {
      out += "&#39;";
    } else if (IsControl(c.value) || TurnsDirection(c.value)) {
      AppendUtf8(char32_t{0xFFFD}, out);
    } else {
      out.append(valid, at, c.size);
    }
    at += c.size;
  }
  return out;
}

std::string FitText(absl::string_view text, double width) {
  std::string valid;
  AppendLossyUtf8(text, valid);
  if (TextWidth(valid) <= width) return valid;
  size_t at = 0;
  double used = 1;  // "…"
  while (at < valid.size()) {
    const CodePoint c = Utf8At(valid, at);
    used += WidthOf(c.value);
    if (used > width) break;
    at += c.size;
  }
  return valid.substr(0, at) + "…";
}

double TextWidth(absl::string_view text) {
  std::string valid;
  AppendLossyUtf8(text, valid);
  double width = 0;
  for (size_t at = 0; at < valid.size();) {
    const CodePoint c = Utf8At(valid, at);
    width += WidthOf(c.value);
    at += c.size;
  }
  return width;
}

}  // namespace qlora::engine
