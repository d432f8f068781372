// A thread where the system has one to give: std::thread throws where it has not.

#ifndef QLORA_KERNELS_START_THREAD_H_
#define QLORA_KERNELS_START_THREAD_H_

#include <functional>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::kernels {

// Calls `work` on a new thread. RESOURCE_EXHAUSTED where the system refuses one; `thread` names it
// in the message: "thread 2 of 4", "the thread of the control channel".
absl::StatusOr<std::thread> StartThread(absl::string_view thread, std::function<void()> work);

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_START_THREAD_H_
