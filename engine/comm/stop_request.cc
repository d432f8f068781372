#include "engine/comm/stop_request.h"

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qlora::engine {

int StopRequest::Heard() {
  const int mine = flag_.signal;
  if (ranks_ == nullptr) return mine;
  if (mine != 0) ranks_->control().AskToStop(mine);
  return ranks_->control().asked_to_stop();
}

absl::StatusOr<int> StopRequest::Agree() {
  const int mine = Heard();
  if (ranks_ == nullptr) return mine;
  absl::StatusOr<std::vector<std::string>> all =
      ranks_->control().AllGather("whether to stop", absl::StrCat(mine));
  if (!all.ok()) return all.status();
  for (const std::string& text : *all) {
    int signal;
    if (absl::SimpleAtoi(text, &signal) && signal != 0) return signal;
  }
  return 0;
}

}  // namespace qlora::engine
