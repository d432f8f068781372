#include "tests/support/process_ranks.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "kernels/cuda/cuda_device.h"
#include "proto/exit_codes.h"
#include "tests/support/thread_ranks.h"

namespace qlora::tests {
namespace {

using Body =
    std::function<absl::StatusOr<std::string>(engine::Ranks& ranks, kernels::Device* device)>;

void WriteAll(int fd, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(fd, text.data() + at, text.size() - at);
    if (n <= 0) return;
    at += size_t(n);
  }
}

absl::StatusOr<std::string> OverDevice(engine::Ranks* ranks, const Body& body) {
  absl::StatusOr<std::unique_ptr<kernels::Device>> device = kernels::cuda::CreateCudaDevice({});
  if (!device.ok()) return device.status();
  const absl::Status opened = ranks->OpenComm(device->get());
  absl::StatusOr<std::string> result =
      opened.ok() ? body(*ranks, device->get()) : absl::StatusOr<std::string>(opened);
  // Nobody leaves while another still waits for what it has sent.
  if (result.ok()) {
    if (absl::Status s = ranks->control().AllGather("the end", "").status(); !s.ok()) result = s;
  }
  if (!result.ok()) ranks->control().Abort(result.status());
  ranks->CloseComm();
  return result;
}

[[noreturn]] void End(int fd, const absl::StatusOr<std::string>& result) {
  WriteAll(fd, result.ok() ? *result : std::string(result.status().message()));
  ::_exit(proto::ExitCodeOf(result.status()));
}

[[noreturn]] void BeRank(const engine::World& world, const ProcessOptions& options,
                         const Body& body, int fd) {
  ::setenv("FAKE_NCCL_FAULT", options.fault.c_str(), 1);
  if (!options.abort_log.empty()) ::setenv("FAKE_NCCL_LOG", options.abort_log.c_str(), 1);
  const auto end_at_once = [fd](const absl::Status& why) { End(fd, why); };
  absl::StatusOr<std::unique_ptr<engine::Ranks>> ranks = engine::Ranks::Join(
      world, {.silence_seconds = options.silence_seconds, .last_resort = end_at_once});
  if (!ranks.ok()) End(fd, ranks.status());
  const absl::StatusOr<std::string> result = OverDevice(ranks->get(), body);
  ranks->reset();
  End(fd, result);
}

}  // namespace

std::vector<ProcessOutcome> OnProcesses(int size, const ProcessOptions& options, const Body& body) {
  struct Process {
    pid_t pid;
    int output;
  };
  std::vector<Process> processes;
  const std::string rendezvous = NewRendezvous();
  for (int rank = 0; rank < size; ++rank) {
    int ends[2];
    if (::pipe(ends) != 0) std::abort();
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::close(ends[0]);
      BeRank({.rank = rank, .size = size, .rendezvous = rendezvous}, options, body, ends[1]);
    }
    ::close(ends[1]);
    processes.push_back({pid, ends[0]});
  }
  std::vector<ProcessOutcome> outcomes;
  for (const Process& process : processes) {
    ProcessOutcome& outcome = outcomes.emplace_back();
    char buffer[4096];
    for (ssize_t n; (n = ::read(process.output, buffer, sizeof(buffer))) > 0;) {
      outcome.text.append(buffer, size_t(n));
    }
    ::close(process.output);
    int status = 0;
    ::waitpid(process.pid, &status, 0);
    if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  }
  return outcomes;
}

}  // namespace qlora::tests
