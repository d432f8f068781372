#include "engine/data/parallel.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/start_thread.h"

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
  for (int64_t t = 1; t < useful; ++t) {
    absl::StatusOr<std::thread> thread = kernels::StartThread("a reading thread", take_chunks);
    if (!thread.ok()) break;  // those that there are do the work
    others.push_back(*std::move(thread));
  }
  take_chunks();
  for (std::thread& thread : others) thread.join();
}

}  // namespace qlora::engine
