// Paged memory of the CPU backend: windows keep their contents while they lie in the file, and the
// process gives their pages back.

#include "kernels/paged_memory.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"

namespace {

// So many calls of pread and pwrite are interrupted, as network file systems allow.
int interruptions = 0;

bool IsInterrupted() {
  if (interruptions == 0) return false;
  --interruptions;
  errno = EINTR;
  return true;
}

}  // namespace

// In place of the library's.
extern "C" ssize_t pread(int file, void* to, size_t bytes, off_t offset) {
  return IsInterrupted() ? -1 : syscall(SYS_pread64, file, to, bytes, offset);
}
extern "C" ssize_t pwrite(int file, const void* from, size_t bytes, off_t offset) {
  return IsInterrupted() ? -1 : syscall(SYS_pwrite64, file, from, bytes, offset);
}

namespace qlora::kernels {
namespace {

std::unique_ptr<Device> Cpu() { return *cpu::CreateCpuDevice({.threads = 1}); }

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * 4096;
}

TEST(CpuPagedMemory, KeepsItsContentsAndGivesPagesBack) {
  constexpr int64_t kWindow = int64_t{4} << 20, kWindows = 16;
  auto device = Cpu();
  auto memory = *device->AllocatePaged({.window_bytes = kWindow,
                                        .windows = kWindows,
                                        .resident = 1,
                                        .slots = 2,
                                        .folder = testing::TempDir()});
  const int64_t before = ResidentBytes();
  for (int round = 0; round < 2; ++round) {
    for (int64_t w = 0; w < kWindows; ++w) {
      if (w > 0) {
        ASSERT_TRUE(memory->Bring(w).ok());
      }
      ASSERT_TRUE(memory->Await(w).ok());
      uint8_t* at = static_cast<uint8_t*>(memory->Address(w));
      for (int64_t i = 0; i < kWindow; i += 512) {
        ASSERT_EQ(at[i], round * (w + 1)) << w;
        at[i] = uint8_t(at[i] + w + 1);
      }
      ASSERT_TRUE(memory->Evict(w).ok());
      EXPECT_LE(ResidentBytes() - before, 2 * kWindow);
    }
  }
  for (int64_t w = 0; w < kWindows; ++w) {
    uint8_t byte = 0;
    ASSERT_TRUE(memory->Read(w, kWindow - 512, &byte, 1).ok());
    EXPECT_EQ(byte, 2 * (w + 1));
    byte = uint8_t(100 + w);
    ASSERT_TRUE(memory->Write(w, 5, &byte, 1).ok());
    EXPECT_EQ(static_cast<uint8_t*>(memory->Address(w))[5], byte);
  }
}

// Windows take turns in memory that has another use between two rounds; the file has them then.
TEST(CpuPagedMemory, KeepsWhatPassesThroughLentMemory) {
  constexpr int64_t kWindow = 8192, kWindows = 5, kSlots = 2;
  auto device = Cpu();
  Buffer lent = *device->Allocate(kSlots * kWindow);
  auto memory = *device->AllocatePaged({.window_bytes = kWindow,
                                        .windows = kWindows,
                                        .resident = 1,
                                        .slots = kSlots,
                                        .page_locked = true,
                                        .lent_offsets = {kWindow, 0},
                                        .lent = lent.data(),
                                        .folder = testing::TempDir()});
  for (int round = 0; round < 3; ++round) {
    std::memset(lent.data(), 0xcd, lent.bytes());
    for (int64_t w = 1; w < kWindows; ++w) {
      ASSERT_TRUE(memory->Bring(w).ok());
      ASSERT_TRUE(memory->Await(w).ok());
      uint8_t* at = static_cast<uint8_t*>(memory->Address(w));
      EXPECT_EQ(at, static_cast<uint8_t*>(lent.data()) + (w % 2 == 1 ? kWindow : 0));
      for (int64_t i = 0; i < kWindow; ++i) {
        ASSERT_EQ(at[i], round * (w + i) % 256) << w;
        at[i] = uint8_t(at[i] + w + i);
      }
      // The host sees it while it is there, and when it is away.
      uint8_t byte = 0;
      for (const bool is_away : {false, true}) {
        if (is_away) {
          ASSERT_TRUE(memory->Evict(w).ok());
          ASSERT_TRUE(memory->Reclaim((w - 1) % kSlots).ok());
          std::memset(at, 0xcd, kWindow);
        }
        ASSERT_TRUE(memory->Read(w, 100, &byte, 1).ok());
        EXPECT_EQ(byte, (round + 1) * (w + 100) % 256);
      }
    }
  }
}

// One window, in the file until it is asked for.
std::unique_ptr<PagedMemory> OneLent(Device* device, Buffer* lent) {
  return *device->AllocatePaged({.window_bytes = lent->bytes(),
                                 .windows = 1,
                                 .slots = 1,
                                 .page_locked = true,
                                 .lent_offsets = {0},
                                 .lent = lent->data(),
                                 .folder = testing::TempDir()});
}

TEST(CpuPagedMemory, ASignalIsNoFailure) {
  auto device = Cpu();
  Buffer lent = *device->Allocate(8192);
  const auto memory = OneLent(device.get(), &lent);
  const int64_t value = 0x0123456789abcdef;
  int64_t read = 0;
  interruptions = 3;
  EXPECT_TRUE(memory->Write(0, 8, &value, sizeof(value)).ok());
  EXPECT_EQ(interruptions, 0);
  interruptions = 3;
  EXPECT_TRUE(memory->Read(0, 8, &read, sizeof(read)).ok());
  EXPECT_EQ(interruptions, 0);
  EXPECT_EQ(read, value);
}

// Of the class that exit code 74 is for: nobody's bug.
TEST(CpuPagedMemory, ADiskThatFailsIsNamedAsSuch) {
  auto device = Cpu();
  Buffer lent = *device->Allocate(8192);
  const auto memory = OneLent(device.get(), &lent);
  ASSERT_TRUE(memory->Await(0).ok());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit none{0, before.rlim_max};
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  const absl::Status failed = memory->Evict(0);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  EXPECT_TRUE(absl::IsUnknown(failed)) << failed;
  EXPECT_THAT(std::string(failed.message()), testing::HasSubstr(testing::TempDir()));
}

TEST(CpuPagedMemory, NamesAFolderThatCannotHoldIt) {
  auto device = Cpu();
  const auto memory = device->AllocatePaged(
      {.window_bytes = 4096, .windows = 2, .slots = 1, .folder = "/nonexistent/folder"});
  EXPECT_TRUE(absl::IsResourceExhausted(memory.status()));
  EXPECT_THAT(std::string(memory.status().message()), testing::HasSubstr("/nonexistent/folder"));
  const auto too_large = device->AllocatePaged(
      {.window_bytes = int64_t{1} << 50, .windows = 2, .slots = 1, .folder = testing::TempDir()});
  EXPECT_TRUE(absl::IsResourceExhausted(too_large.status()));
}

}  // namespace
}  // namespace qlora::kernels
