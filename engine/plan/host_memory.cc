#include "engine/plan/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

namespace qlora::engine {
namespace {

// The value of "key:   123 kB" in a file of /proc, in bytes; 0 where there is none.
int64_t ProcValue(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size() + 1, key + ":") != 0) continue;
    std::istringstream rest(line.substr(key.size() + 1));
    int64_t kib = 0;
    rest >> kib;
    return kib * 1024;
  }
  return 0;
}

// Limit of the control group, version 2 or 1; the largest int64 where there is none.
int64_t GroupLimit() {
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream file(path);
    int64_t bytes = 0;
    if (file >> bytes) return bytes;
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

int64_t ResidentHostMemory() { return ProcValue("/proc/self/status", "VmRSS"); }

int64_t AvailableHostMemory() {
  return std::min(ProcValue("/proc/meminfo", "MemAvailable") + ResidentHostMemory(), GroupLimit());
}

int64_t PeakHostMemory() { return ProcValue("/proc/self/status", "VmHWM"); }

}  // namespace qlora::engine
