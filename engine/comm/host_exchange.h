// Bytes of host memory from one rank to others, over the link of the devices' memory: for loading
// and saving, not for steps.

#ifndef QLORA_ENGINE_COMM_HOST_EXCHANGE_H_
#define QLORA_ENGINE_COMM_HOST_EXCHANGE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/comm/comm.h"
#include "kernels/device.h"

namespace qlora::engine {

class HostExchange {
 public:
  // Staging that is enough for the full rate of a link.
  static constexpr int64_t kStagingBytes = int64_t{4} << 20;

  // `staging`: `bytes` of the device's memory that nothing else uses while anything is sent. Where
  // the device's memory is the host's it is not needed and may be empty. All is borrowed.
  HostExchange(Comm* comm, kernels::Device* device, void* staging, int64_t bytes)
      : comm_(*comm), device_(*device), staging_(staging), staging_bytes_(bytes) {}

  Comm& comm() { return comm_; }

  // All of `ranks`, and only they, call it: they get the `count` bytes of the first one, whose own
  // are left as they are.
  absl::Status Broadcast(void* bytes, int64_t count, absl::Span<const int> ranks);

 private:
  Comm& comm_;
  kernels::Device& device_;
  void* const staging_;
  const int64_t staging_bytes_;
};

// Ranks that take the same input: the first of `ranks` reads it and hands it to the others.
struct SharedReading {
  HostExchange* exchange = nullptr;  // null: a process alone
  absl::Span<const int> ranks;

  bool is_shared() const { return ranks.size() > 1; }
  // Whether this rank is the one that reads.
  bool reads() const { return exchange == nullptr || exchange->comm().rank() == ranks.front(); }
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_HOST_EXCHANGE_H_
