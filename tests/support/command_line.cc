#include "tests/support/command_line.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/engine/io/temp_folder.h"
#include "tests/support/paths.h"

namespace qlora::tests {
namespace {

// More ranks than cores, as any user, also as root in a container.
constexpr const char* kMpiEnvironment[][2] = {
    {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
    {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
    {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
    // Open MPI leaves memory behind, and it is not ours to mend.
    {"ASAN_OPTIONS", "detect_leaks=0"},
};

// No test leaves anything in the user's own folders.
const std::string& CacheFolder() {
  static const TempFolder folder;
  return folder.path();
}

void ExecEngine(const std::vector<std::string>& words, const CommandOptions& options, int out,
                int err) {
  const int64_t address_space = options.address_space;
  if (address_space > 0 && !kSanitized) {
    const rlimit limit{rlim_t(address_space), rlim_t(address_space)};
    ::setrlimit(RLIMIT_AS, &limit);
  }
  ::setenv("XDG_CACHE_HOME", CacheFolder().c_str(), 1);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  std::vector<std::string> launch = options.launcher;
  if (options.ranks > 1) {
    for (const auto& [name, value] : kMpiEnvironment) ::setenv(name, value, 1);
    launch = {"mpirun", "-n", std::to_string(options.ranks)};
  }
  launch.push_back(EngineBinary());
  std::vector<char*> argv;
  for (std::string& word : launch) argv.push_back(word.data());
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

}  // namespace

CommandResult RunEngine(const std::vector<std::string>& words, const CommandOptions& options) {
  CacheFolder();  // made here, not in the child
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) std::abort();
  const pid_t pid = ::fork();
  if (pid == 0) ExecEngine(words, options, out[1], err[1]);
  ::close(out[1]);
  ::close(err[1]);
  if (options.on_start) options.on_start(pid);

  CommandResult result;
  pollfd ends[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  std::string* texts[2] = {&result.out, &result.err};
  std::vector<CommandOptions::Cue> cues = options.cues;
  int open = 2;
  while (open > 0) {
    ::poll(ends, 2, -1);
    for (int i = 0; i < 2; ++i) {
      if (ends[i].fd < 0 || ends[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t n = ::read(ends[i].fd, buffer, sizeof(buffer));
      if (n > 0) {
        texts[i]->append(buffer, size_t(n));
        continue;
      }
      ::close(ends[i].fd);
      ends[i].fd = -1;
      --open;
    }
    std::erase_if(cues, [&](const CommandOptions::Cue& cue) {
      if (result.out.find(cue.text) == std::string::npos) return false;
      cue.then(pid);
      return true;
    });
  }
  int status = 0;
  rusage usage{};
  ::wait4(pid, &status, 0, &usage);
  for (const timeval& time : {usage.ru_utime, usage.ru_stime}) {
    result.cpu_seconds += double(time.tv_sec) + 1e-6 * double(time.tv_usec);
  }
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

std::vector<int> ProcessesOf(int launcher) {
  std::map<int, int> by_rank;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const int pid = std::atoi(entry.path().filename().c_str());
    if (pid == 0) continue;  // no process
    std::ifstream stat(entry.path() / "stat");
    std::string text(std::istreambuf_iterator<char>(stat), {});
    // "pid (name) state parent ..."
    const size_t close = text.rfind(") ");
    if (close == std::string::npos || std::atoi(&text[close + 4]) != launcher) continue;
    std::ifstream file(entry.path() / "environ", std::ios::binary);
    const std::string environment(std::istreambuf_iterator<char>(file), {});
    constexpr char kRank[] = "OMPI_COMM_WORLD_RANK=";
    const size_t at = environment.find(kRank);
    if (at == std::string::npos) continue;
    by_rank[std::atoi(&environment[at + sizeof(kRank) - 1])] = pid;
  }
  std::vector<int> pids;
  for (const auto& [rank, pid] : by_rank) pids.push_back(pid);
  return pids;
}

std::map<std::string, std::string> TreeOf(const std::string& folder) {
  namespace fs = std::filesystem;
  std::map<std::string, std::string> tree;
  if (!fs::exists(folder)) return tree;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    if (entry.is_symlink()) {
      tree[name] = "-> " + fs::read_symlink(entry.path()).string();
      continue;
    }
    if (!entry.is_directory() && !entry.is_regular_file()) {
      tree[name] = "special";
      continue;
    }
    if (entry.is_directory()) {
      tree[name + "/"] = "";
      continue;
    }
    std::ifstream file(entry.path(), std::ios::binary);
    tree[name] = std::string(std::istreambuf_iterator<char>(file), {});
  }
  return tree;
}

}  // namespace qlora::tests
