#include "engine/report/live_progress.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/errors.h"

namespace qlora::engine {

Progress LiveProgress(Console* console, std::string what, StopSignal stop_signal,
                      std::string if_stopped) {
  return [=, what = std::move(what), if_stopped = std::move(if_stopped)](double share) {
    console->Live(absl::StrCat(what, " ", Bar(share, 30)));
    const int number = stop_signal == nullptr ? 0 : *stop_signal;
    return number == 0 ? absl::OkStatus() : proto::StoppedError(number, if_stopped);
  };
}

}  // namespace qlora::engine
