#include "engine/data/parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace qlora::engine {

void ForEachInParallel(int64_t n, int threads, int64_t chunk,
                       absl::FunctionRef<void(int64_t)> work) {
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  const int64_t chunks = (n + chunk - 1) / chunk;
  std::atomic<int64_t> next{0};
  const auto take_chunks = [&] {
    for (int64_t c = next++; c < chunks; c = next++) {
      for (int64_t i = c * chunk; i < std::min(n, (c + 1) * chunk); ++i) work(i);
    }
  };
  std::vector<std::thread> others;
  const int64_t useful = std::min<int64_t>(threads, chunks);
  try {
    for (int64_t t = 1; t < useful; ++t) others.emplace_back(take_chunks);
  } catch (const std::system_error&) {
    // The system refuses more threads: those that there are do the work.
  }
  take_chunks();
  for (std::thread& thread : others) thread.join();
}

}  // namespace qlora::engine
