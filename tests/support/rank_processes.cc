#include "tests/support/rank_processes.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "proto/exit_codes.h"
#include "tests/support/thread_ranks.h"

namespace qlora::tests {
namespace {

void WriteAll(int fd, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(fd, text.data() + at, text.size() - at);
    if (n <= 0) return;
    at += size_t(n);
  }
}

[[noreturn]] void End(int fd, const absl::StatusOr<std::string>& result) {
  WriteAll(fd, result.ok() ? *result : std::string(result.status().message()));
  ::_exit(proto::ExitCodeOf(result.status()));
}

}  // namespace

RankProcesses::RankProcesses(int size, double silence_seconds, const Body& body) {
  const std::string rendezvous = NewRendezvous();
  for (int rank = 0; rank < size; ++rank) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
    const pid_t pid = ::fork();
    if (pid == 0) {
      const int fd = ends[1];
      End(fd, body({.rank = rank, .size = size, .rendezvous = rendezvous},
                   {.silence_seconds = silence_seconds,
                    .last_resort = [fd](const absl::Status& why) { End(fd, why); }}));
    }
    ::close(ends[1]);
    processes_.push_back({pid, ends[0]});
  }
}

RankProcesses::~RankProcesses() {
  for (int rank = 0; rank < size(); ++rank) {
    if (processes_[rank].waited) continue;
    ::kill(pid(rank), SIGKILL);
    Wait(rank);
  }
}

ProcessOutcome RankProcesses::Wait(int rank) {
  Process& process = processes_[rank];
  ProcessOutcome outcome;
  char buffer[4096];
  for (ssize_t n; (n = ::read(process.output, buffer, sizeof(buffer))) > 0;) {
    outcome.text.append(buffer, size_t(n));
  }
  ::close(process.output);
  int status = 0;
  ::waitpid(process.pid, &status, 0);
  process.waited = true;
  if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
  return outcome;
}

}  // namespace qlora::tests
