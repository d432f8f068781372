#include "kernels/cpu/thread_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/start_thread.h"

namespace qlora::kernels::cpu {
namespace {

// How long a worker looks for the next round before it sleeps: the gap between two ops is a few
// microseconds, a wake-up through the kernel about fifty.
constexpr int kSpins = 2000;

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadPool>> ThreadPool::Create(int threads) {
  if (threads < 1) return absl::InvalidArgumentError(absl::StrCat(threads, " threads; at least 1"));
  std::unique_ptr<ThreadPool> pool(new ThreadPool);
  absl::StatusOr<Buffer> scratch = Buffer::CreateHost(threads * kScratchBytes);
  if (!scratch.ok()) return scratch.status();
  pool->scratch_ = *std::move(scratch);
  for (int worker = 1; worker < threads; ++worker) {
    absl::StatusOr<std::thread> thread =
        StartThread(absl::StrCat("thread ", worker + 1, " of ", threads),
                    [p = pool.get(), worker] { p->Work(worker); });
    if (!thread.ok()) return thread.status();
    pool->threads_.push_back(*std::move(thread));
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    published_round_.fetch_add(1, std::memory_order_release);
  }
  start_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Run(int64_t tiles, Function f) {
  if (tiles <= 0) return;
  const bool alone = threads_.empty() || tiles == 1;
  function_ = &f;
  tiles_ = tiles;
  next_.store(0, std::memory_order_relaxed);
  if (!alone) {
    {
      std::lock_guard lock(mutex_);
      ++round_;
      busy_ = int(threads_.size());
      published_round_.store(round_, std::memory_order_release);
    }
    start_.notify_all();
  }
  TakeTiles(0);
  if (!alone) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }
}

void ThreadPool::TakeTiles(int worker) {
  uint8_t* scratch = static_cast<uint8_t*>(scratch_.data()) + worker * kScratchBytes;
  for (;;) {
    const int64_t tile = next_.fetch_add(1, std::memory_order_relaxed);
    if (tile >= tiles_) return;
    (*function_)(tile, scratch);
  }
}

void ThreadPool::Work(int worker) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && published_round_.load(std::memory_order_acquire) == seen; ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    {
      std::unique_lock lock(mutex_);
      start_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
    }
    TakeTiles(worker);
    {
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }
}

}  // namespace qlora::kernels::cpu
