// What the processes of a pretended communicator share: a channel for each ordered pair of them.
#ifndef QLORA_TESTS_SUPPORT_FAKE_NCCL_SHARED_MEMORY_H_
#define QLORA_TESTS_SUPPORT_FAKE_NCCL_SHARED_MEMORY_H_

#include <atomic>
#include <cstdint>
#include <string>

namespace qlora::fake_nccl {

inline constexpr int kMostRanks = 8;
inline constexpr int64_t kChannelBytes = 64 << 10;

// What sender and receiver must agree on.
inline constexpr char kSend = 's', kBroadcast = 'b';
struct Header {
  char kind = 0;
  int32_t type = 0;
  int64_t count = 0;
  int64_t collective =
      0;  // how many groups with broadcasts went before: all ranks take part in them
  bool operator==(const Header&) const = default;
};

// One chunk at a time: written while it is empty, read while it is full.
struct Channel {
  std::atomic<bool> full;
  Header header;
  int64_t bytes;
  uint8_t data[kChannelBytes];
};

struct SharedMemory {
  std::atomic<int> joined;
  Channel channels[kMostRanks][kMostRanks];  // [from][to]
};

// Maps the memory of this name, zeros where it is new; null where that fails.
SharedMemory* Map(const std::string& name);
// Takes the name away; the memory stays until the last process unmaps it.
void Unlink(const std::string& name);
void Unmap(SharedMemory* memory);

}  // namespace qlora::fake_nccl

#endif  // QLORA_TESTS_SUPPORT_FAKE_NCCL_SHARED_MEMORY_H_
