// What a run says on the terminal: plain lines, and under them one live line where the output is a
// terminal.

#ifndef QLORA_ENGINE_REPORT_CONSOLE_H_
#define QLORA_ENGINE_REPORT_CONSOLE_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace qlora::engine {

class Console {
 public:
  // Writes to standard output; `live` shows the live line (by default: where standard output is a
  // terminal).
  Console();
  explicit Console(bool live) : live_(live) {}
  ~Console() { EndLive(); }

  // No live line, whatever the output is.
  void KeepPlain();
  // For a process that is not to be heard unless something is wrong: no lines any more, and
  // `speaker` before each warning and error.
  void Mute(std::string speaker);

  // A line that stays. May hold several lines.
  void Line(absl::string_view text);
  // To standard error, with "warning: ".
  void Warning(absl::string_view text);
  // To standard error, with "error: ".
  void Error(absl::string_view text);
  // Replaces the live line; nothing where there is none.
  void Live(absl::string_view text);
  void EndLive();
  bool live() const { return live_; }

 private:
  bool live_;
  bool muted_ = false;
  std::string speaker_;
  bool showing_ = false;
  std::string shown_;  // the live line
};

// "[#####.....]" for a share in [0, 1].
std::string Bar(double share, int width);
// "1:02:03" or "2:03".
std::string FormatDuration(double seconds);
// "12,345,678".
std::string FormatCount(int64_t n);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_CONSOLE_H_
