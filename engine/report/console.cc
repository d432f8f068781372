#include "engine/report/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace qlora::engine {
namespace {

constexpr int kDefaultColumns = 120;

int TerminalColumns() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kDefaultColumns;
  return size.ws_col;
}

void Print(FILE* stream, absl::string_view text) {
  fwrite(text.data(), 1, text.size(), stream);
  fflush(stream);
}

// Messages quote names from files: their control characters must give the terminal no orders, nor
// a NUL end the message.
std::string Harmless(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte >= 32 && byte != 127) || c == '\n') {
      out.push_back(c);
    } else {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    }
  }
  return out;
}

}  // namespace

Console::Console() : live_(isatty(STDOUT_FILENO) == 1) {}

void Console::EndLive() {
  if (showing_) Print(stdout, "\n");
  showing_ = false;
}

void Console::KeepPlain() {
  EndLive();
  live_ = false;
}

void Console::Mute(std::string speaker) {
  KeepPlain();
  muted_ = true;
  speaker_ = std::move(speaker);
}

void Console::Line(absl::string_view text) {
  if (muted_) return;
  if (showing_) Print(stdout, "\r\x1b[K");
  showing_ = false;
  Print(stdout, absl::StrCat(absl::StripSuffix(text, "\n"), "\n"));
}

void Console::Warning(absl::string_view text) {
  EndLive();
  Print(stderr, absl::StrCat(speaker_, "warning: ", Harmless(text), "\n"));
}

void Console::Error(absl::string_view text) {
  EndLive();
  Print(stderr, absl::StrCat(speaker_, "error: ", Harmless(text), "\n"));
}

void Console::Live(absl::string_view text) {
  if (!live_ || (showing_ && text == shown_)) return;
  Print(stdout, absl::StrCat("\r\x1b[K", text.substr(0, std::max(1, TerminalColumns() - 1))));
  showing_ = true;
  shown_ = std::string(text);
}

std::string Bar(double share, int width) {
  const int filled = int(std::clamp(share, 0.0, 1.0) * width + 0.5);
  return absl::StrCat("[", std::string(filled, '#'), std::string(width - filled, '.'), "]");
}

std::string FormatDuration(double seconds) {
  const int64_t s = int64_t(std::max(0.0, seconds) + 0.5);
  if (s >= 3600) return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
  return absl::StrFormat("%d:%02d", s / 60, s % 60);
}

std::string FormatCount(int64_t n) {
  std::string digits = absl::StrCat(n);
  for (int64_t at = int64_t(digits.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3)
    digits.insert(at, ",");
  return digits;
}

}  // namespace qlora::engine
