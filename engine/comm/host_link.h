// A way for the bytes of ranks on CPUs. Not thread safe; host_comm.h uses it from one thread.

#ifndef QLORA_ENGINE_COMM_HOST_LINK_H_
#define QLORA_ENGINE_COMM_HOST_LINK_H_

#include <cstdint>

#include "absl/status/status.h"

namespace qlora::engine {

class HostLink {
 public:
  virtual ~HostLink() = default;
  // Sends to one rank while receiving from another; either may be the own one or −1, which means
  // not at all. Each message is received with the count it was sent with.
  virtual absl::Status Exchange(int to, const void* send, int64_t send_bytes, int from,
                                void* receive, int64_t receive_bytes) = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_HOST_LINK_H_
