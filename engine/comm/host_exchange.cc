#include "engine/comm/host_exchange.h"

#include <algorithm>

namespace qlora::engine {

absl::Status HostExchange::Broadcast(void* bytes, int64_t count, absl::Span<const int> ranks) {
  if (ranks.size() < 2) return absl::OkStatus();
  if (device_.info().is_host) {
    if (absl::Status s = comm_.StartBroadcast(bytes, count, ranks); !s.ok()) return s;
    return comm_.Finish();
  }
  if (absl::Status s = device_.Synchronize(); !s.ok()) return s;
  const bool sends = ranks.front() == comm_.rank();
  for (int64_t at = 0; at < count; at += staging_bytes_) {
    uint8_t* const part = static_cast<uint8_t*>(bytes) + at;
    const int64_t n = std::min(staging_bytes_, count - at);
    absl::Status status = sends ? device_.CopyIn(staging_, part, n) : absl::OkStatus();
    if (!status.ok()) return status;
    if (status = comm_.StartBroadcast(staging_, n, ranks); !status.ok()) return status;
    if (status = comm_.Finish(); !status.ok()) return status;
    if (status = device_.Synchronize(); !status.ok()) return status;
    if (!sends) status = device_.CopyOut(part, staging_, n);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
