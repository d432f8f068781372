// What tests may ask of the host's GPU runtime beyond runtime.h.

#ifndef QLORA_TESTS_SUPPORT_SIMT_RUNTIME_H_
#define QLORA_TESTS_SUPPORT_SIMT_RUNTIME_H_

#include <cstdint>
#include <functional>

#include "kernels/cuda/runtime.h"

namespace qlora::simt {

// What the pretended card is. Applies to what is opened and allocated from now on.
struct CardOptions {
  int count = 1;  // of them in the machine; all are this one
  int major = 8, minor = 0;
  int64_t memory_bytes = int64_t{4} << 30;
  bool concurrent_managed = true;
  // Whether kernels may reach managed pages that lie in host memory where they were advised to.
  bool remote_access = true;
  // Kernels that still run before the card falls off its bus; −1: it does not.
  int64_t launches_until_lost = -1;
  // Where streams may overtake each other, this decides who does.
  uint64_t seed = 1;
};
void SetCard(const CardOptions& options);

struct RuntimeCounters {
  int64_t launches = 0;  // kernels run, replayed ones included
  int64_t graph_launches = 0;
  int64_t device_bytes = 0;             // allocated now
  int64_t moved_in = 0, moved_out = 0;  // managed bytes moved by Prefetch
  int64_t managed_resident = 0;         // managed bytes on the card now
  int64_t managed_resident_peak = 0;
};
RuntimeCounters Counters();
void ResetCounters();

// Puts work of another library on a stream: `advance` is called in its turn, with device memory
// open, again and again until it says that the work is over.
void EnqueueForeign(gpu::Stream stream, std::function<bool()> advance);

}  // namespace qlora::simt

#endif  // QLORA_TESTS_SUPPORT_SIMT_RUNTIME_H_
