// Progress that is shown, and that a signal may end.

#ifndef QLORA_ENGINE_REPORT_LIVE_PROGRESS_H_
#define QLORA_ENGINE_REPORT_LIVE_PROGRESS_H_

#include <csignal>
#include <string>

#include "engine/progress.h"
#include "engine/report/console.h"

namespace qlora::engine {

// A signal that asks for an end: 0 until it comes, null where none is listened to.
using StopSignal = const volatile std::sig_atomic_t*;

// "<what> [####....]" as the console's live line. Where a signal has come Stopped (exit 130, 143),
// saying `if_stopped`: what becomes of the work.
Progress LiveProgress(Console* console, std::string what, StopSignal stop_signal = nullptr,
                      std::string if_stopped = "");

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_LIVE_PROGRESS_H_
