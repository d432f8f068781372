#include "engine/comm/nccl_memory.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

NcclSettings With(const std::map<std::string, std::string>& variables) {
  return SettingsOfNccl([&](const char* name) -> const char* {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

// A connection: 4096 + 4 Mi + 512 Ki + 4,915,200 bytes in pages of 2 MiB are 10 MiB to receive in,
// and 2 MiB to send from. The code's allowance: 128 MiB.
TEST(NcclMemory, CountsTheConnectionsOfARank) {
  const NcclSettings settings;
  EXPECT_EQ(NcclDeviceBytes(1, 1, settings), 0);
  // A ring of two has one neighbour.
  EXPECT_EQ(NcclDeviceBytes(2, 2, settings), (128 + 8 * 12 + 8 * 12) * kMiB);
  EXPECT_EQ(NcclDeviceBytes(8, 8, settings), (128 + 8 * 2 * 12 + 8 * 7 * 12) * kMiB);
  // Another machine: a parent and a child more, and the pool, 2 MiB each way of a channel.
  EXPECT_EQ(NcclDeviceBytes(64, 8, settings), (128 + 8 * 4 * 12 + 8 * 7 * 12 + 8 * 2 * 2) * kMiB);
  EXPECT_EQ(NcclDeviceBytes(4, 1, settings), (128 + 8 * 3 * 12 + 8 * 2 * 2) * kMiB);
}

TEST(NcclMemory, SendsTakeAPowerOfTwoOfChannels) {
  EXPECT_EQ(NcclDeviceBytes(2, 2, {.channels = 5}), (128 + 5 * 12 + 8 * 12) * kMiB);
}

TEST(NcclMemory, SmallerBuffersTakeLess) {
  EXPECT_EQ(NcclDeviceBytes(2, 2, {.buffer_bytes = kMiB}), (128 + 2 * 8 * (8 + 2)) * kMiB);
}

TEST(NcclMemory, SettingsAreThoseThatNcclReads) {
  EXPECT_EQ(With({}).channels, 8);
  EXPECT_EQ(With({}).buffer_bytes, 4 * kMiB);
  EXPECT_EQ(With({{"NCCL_MAX_NCHANNELS", "2"}}).channels, 2);
  EXPECT_EQ(With({{"NCCL_MAX_NCHANNELS", "32"}}).channels, 32);
  EXPECT_EQ(With({{"NCCL_MAX_CTAS", "4"}}).channels, 4);
  EXPECT_EQ(With({{"NCCL_MIN_NCHANNELS", "16"}}).channels, 16);
  EXPECT_EQ(With({{"NCCL_MAX_NCHANNELS", "2"}, {"NCCL_MIN_CTAS", "4"}}).channels, 4);
  EXPECT_EQ(With({{"NCCL_MAX_NCHANNELS", "99999999999"}}).channels, 64);
  EXPECT_EQ(With({{"NCCL_BUFFSIZE", "1048576"}}).buffer_bytes, kMiB);
  for (const char* nonsense : {"", "0", "-3", "many"}) {
    EXPECT_EQ(With({{"NCCL_MAX_NCHANNELS", nonsense}}).channels, 8) << nonsense;
    EXPECT_EQ(With({{"NCCL_BUFFSIZE", nonsense}}).buffer_bytes, 4 * kMiB) << nonsense;
  }
}

TEST(NcclMemory, SaysWhereTheFigureComesFrom) {
  const std::string text = DescribeNccl({.channels = 2, .buffer_bytes = kMiB});
  EXPECT_THAT(text, HasSubstr("up to 2 channels"));
  EXPECT_THAT(text, HasSubstr("1024 KiB"));
  EXPECT_THAT(text, HasSubstr("NCCL_MAX_NCHANNELS, NCCL_BUFFSIZE"));
}

}  // namespace
}  // namespace qlora::engine
