// The built program as a user runs it: its words, its exit code, what it wrote where.
#ifndef QLORA_TESTS_SUPPORT_COMMAND_LINE_H_
#define QLORA_TESTS_SUPPORT_COMMAND_LINE_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace qlora::tests {

struct CommandResult {
  int exit_code = -1;  // −1 where a signal ended it
  int signal = 0;
  double cpu_seconds = 0;  // of the process and its threads
  std::string out, err;
};

// A sanitizer's shadow memory needs more address space than any limit leaves, and its checks more
// time.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
inline constexpr bool kSanitized =
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool kSanitized = false;
#endif

struct CommandOptions {
  int ranks = 1;  // more than one: under mpirun, whose exit code and output are then given
  int64_t address_space = 0;  // bytes; 0: no limit. Not kept to by sanitized builds
  // Words before the program: what starts it.
  std::vector<std::string> launcher;
  // Called with the process as soon as there is one.
  std::function<void(int pid)> on_start;
  // Each is called once with the process, when its output first holds the text.
  struct Cue {
    std::string text;
    std::function<void(int pid)> then;
  };
  std::vector<Cue> cues;
};

// Runs qlora_engine and waits for it. Standard output and error are pipes, so there is no live
// line.
CommandResult RunEngine(const std::vector<std::string>& words, const CommandOptions& options = {});

// The processes that mpirun, as process `launcher`, has started, by rank.
std::vector<int> ProcessesOf(int launcher);

// Path below `folder` → contents, of every file in it; folders as "name/" → "", links as "-> to",
// what else there may be (a FIFO) as "special".
std::map<std::string, std::string> TreeOf(const std::string& folder);

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_COMMAND_LINE_H_
