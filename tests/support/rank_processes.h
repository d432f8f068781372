// Ranks as processes, forked from the test.
#ifndef QLORA_TESTS_SUPPORT_RANK_PROCESSES_H_
#define QLORA_TESTS_SUPPORT_RANK_PROCESSES_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/control_channel.h"
#include "engine/comm/world.h"

namespace qlora::tests {

struct ProcessOutcome {
  int exit_code = -1;  // −1 where a signal ended it
  int signal = 0;
  std::string text;  // what the body returned, or its error
};

class RankProcesses {
 public:
  // Runs `body` in a process for each of `size` ranks, which ends as the program does: with the
  // error's exit code, also where the main thread hangs, if the body joins with `control`. Call it
  // while the test has no other thread.
  using Body = std::function<absl::StatusOr<std::string>(const engine::World& world,
                                                         const engine::ControlOptions& control)>;
  RankProcesses(int size, double silence_seconds, const Body& body);
  // Kills those that nobody has waited for.
  ~RankProcesses();
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;

  int size() const { return int(processes_.size()); }
  pid_t pid(int rank) const { return processes_[rank].pid; }
  // Comes back when that rank has ended. Once for each.
  ProcessOutcome Wait(int rank);

 private:
  struct Process {
    pid_t pid;
    int output;
    bool waited = false;
  };
  std::vector<Process> processes_;
};

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_RANK_PROCESSES_H_
