// A fixed set of threads that take tiles from a queue.
//
// Work is cut into tiles by shape alone and a tile's result depends on nothing but its index, so
// the number of threads and the speed of each change nothing but the time.

#ifndef QLORA_KERNELS_CPU_THREAD_POOL_H_
#define QLORA_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/buffer.h"

namespace qlora::kernels::cpu {

class ThreadPool {
 public:
  // Private memory of each worker: decoded panels, score tiles. Kernels cut their tiles to fit into
  // it.
  static constexpr int64_t kScratchBytes = 2 << 20;

  // `threads` ≥ 1 workers, the calling thread being one of them. RESOURCE_EXHAUSTED where the
  // system refuses a thread or its memory.
  static absl::StatusOr<std::unique_ptr<ThreadPool>> Create(int threads);
  ~ThreadPool();

  int size() const { return int(threads_.size()) + 1; }

  // Calls f(tile, scratch) for every tile in [0, tiles) and returns when all are done. `scratch` is
  // the worker's own kScratchBytes, 64-byte aligned, with whatever the last tile left there. Not
  // reentrant; one caller at a time.
  using Function = absl::FunctionRef<void(int64_t tile, uint8_t* scratch)>;
  void Run(int64_t tiles, Function f);

 private:
  ThreadPool() = default;
  void Work(int worker);
  void TakeTiles(int worker);

  std::vector<std::thread> threads_;
  Buffer scratch_;
  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  uint64_t round_ = 0;     // guarded by mutex_
  int busy_ = 0;           // guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  const Function* function_ = nullptr;
  int64_t tiles_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> published_round_{0};
};

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_THREAD_POOL_H_
