#include "kernels/start_thread.h"

#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::kernels {

absl::StatusOr<std::thread> StartThread(absl::string_view thread, std::function<void()> work) {
  try {
    return std::thread(std::move(work));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the system refused ", thread, ": ", error.code().message(),
        " (see ulimit -u, ulimit -v and the container's pids.max; num_threads asks for fewer)"));
  }
}

}  // namespace qlora::kernels
