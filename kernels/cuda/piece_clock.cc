#include "kernels/cuda/piece_clock.h"

namespace qlora::kernels::cuda {

PieceClock::~PieceClock() {
  free_.insert(free_.end(), pending_.begin(), pending_.end());
  for (const Pair& pair : free_) {
    gpu::DestroyEvent(pair.begin);
    gpu::DestroyEvent(pair.end);
  }
}

absl::Status PieceClock::Time(gpu::Stream stream, absl::FunctionRef<absl::Status()> start) {
  if (free_.empty()) {
    absl::StatusOr<gpu::Event> begin = gpu::CreateTimedEvent();
    if (!begin.ok()) return begin.status();
    absl::StatusOr<gpu::Event> end = gpu::CreateTimedEvent();
    if (!end.ok()) {
      gpu::DestroyEvent(*begin);
      return end.status();
    }
    free_.push_back({*begin, *end});
  }
  const Pair pair = free_.back();
  if (absl::Status s = gpu::Record(pair.begin, stream); !s.ok()) return s;
  if (absl::Status s = start(); !s.ok()) return s;
  if (absl::Status s = gpu::Record(pair.end, stream); !s.ok()) return s;
  free_.pop_back();
  pending_.push_back(pair);
  return absl::OkStatus();
}

absl::Status PieceClock::Collect() {
  for (const Pair& pair : pending_) {
    const absl::StatusOr<double> seconds = gpu::SecondsBetween(pair.begin, pair.end);
    if (!seconds.ok()) return seconds.status();
    seconds_ += *seconds;
  }
  free_.insert(free_.end(), pending_.begin(), pending_.end());
  pending_.clear();
  return absl::OkStatus();
}

}  // namespace qlora::kernels::cuda
