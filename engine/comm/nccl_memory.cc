#include "engine/comm/nccl_memory.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

constexpr int64_t kMostChannels = 64, kMostBufferBytes = int64_t{1} << 30;
// Buffers of the two protocols for small messages: 8 steps of 512 threads · 8 lines of 16 bytes,
// and of 640 threads · 120 words of 8.
constexpr int64_t kLowLatencyBytes = 8 * 512 * 8 * 16;
constexpr int64_t kLowLatency128Bytes = 8 * 640 * 120 * 8;
// Head and tail of a connection's queue; each side is one allocation, in pages of 2 MiB.
constexpr int64_t kQueueBytes = 4096;
constexpr int64_t kPageBytes = int64_t{2} << 20;
// Of the pool for ranks of other machines, in each direction of a channel: 16 steps of 128 KiB.
constexpr int64_t kPoolBytes = 16 * (int64_t{128} << 10);
// The code of its kernels, their stacks and tables of peers: an allowance, not measured.
constexpr int64_t kCodeBytes = int64_t{128} << 20;

int64_t Pages(int64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

std::optional<int64_t> Positive(const EnvironmentOf& environment, const char* name) {
  const char* const text = environment(name);
  int64_t value = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &value) || value < 1) return std::nullopt;
  return value;
}

}  // namespace

NcclSettings SettingsOfNccl(const EnvironmentOf& environment) {
  NcclSettings settings;
  int64_t channels = settings.channels;
  for (const char* most : {"NCCL_MAX_NCHANNELS", "NCCL_MAX_CTAS"}) {
    channels = Positive(environment, most).value_or(channels);
  }
  for (const char* least : {"NCCL_MIN_NCHANNELS", "NCCL_MIN_CTAS"}) {
    channels = std::max(channels, Positive(environment, least).value_or(0));
  }
  settings.channels = int(std::min(channels, kMostChannels));
  settings.buffer_bytes = std::min(
      Positive(environment, "NCCL_BUFFSIZE").value_or(settings.buffer_bytes), kMostBufferBytes);
  return settings;
}

int64_t NcclDeviceBytes(int ranks, int local_ranks, const NcclSettings& settings) {
  if (ranks < 2) return 0;
  const bool is_one_machine = local_ranks == ranks;
  // NCCL rounds the channels of sends up to a power of two.
  const int64_t send_channels = std::bit_ceil(unsigned(settings.channels));
  const int64_t both_ways =
      Pages(kQueueBytes + settings.buffer_bytes + kLowLatencyBytes + kLowLatency128Bytes) +
      Pages(kQueueBytes);
  const int64_t neighbours = std::min(ranks - 1, is_one_machine ? 2 : 4);
  return kCodeBytes + settings.channels * neighbours * both_ways +
         send_channels * (local_ranks - 1) * both_ways +
         (is_one_machine ? 0 : send_channels * 2 * kPoolBytes);
}

std::string DescribeNccl(const NcclSettings& settings) {
  return absl::StrCat("NCCL: up to ", settings.channels, " channels to each rank, buffers of ",
                      settings.buffer_bytes >> 10, " KiB (NCCL_MAX_NCHANNELS, NCCL_BUFFSIZE)");
}

}  // namespace qlora::engine
