// Ranks as processes, each with a device of the CUDA backend, with the real control channel between
// them and NCCL, or what stands for it, beside it.
#ifndef QLORA_TESTS_SUPPORT_PROCESS_RANKS_H_
#define QLORA_TESTS_SUPPORT_PROCESS_RANKS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/ranks.h"
#include "tests/support/rank_processes.h"

namespace qlora::tests {

struct ProcessOptions {
  double silence_seconds = 60;
  std::string fault;      // FAKE_NCCL_FAULT
  std::string abort_log;  // FAKE_NCCL_LOG, or empty
};

// Runs `body` in a process for each of `size` ranks, whose Comm is open over `device`, and waits
// for all of them. Processes end as the program does: with the error's exit code, after all have
// been told. Call it while the test has no other thread.
std::vector<ProcessOutcome> OnProcesses(
    int size, const ProcessOptions& options,
    const std::function<absl::StatusOr<std::string>(engine::Ranks& ranks, kernels::Device* device)>&
        body);

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_PROCESS_RANKS_H_
