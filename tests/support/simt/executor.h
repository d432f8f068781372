// The SIMT executor: runs a kernel that was compiled as C++ on the host, block after block, each
// thread a fiber. Lanes of a warp meet in warp operations, threads of a block at barriers.
//
// It checks what hardware lets pass: shared memory out of bounds, read before it was written, or
// touched by two threads without a barrier between them; barriers that not all threads of a block
// reach, or reach at different places; warp operations that a lane misses. The first fault ends the
// launch, with the kernel, block, thread and source line in its message.
//
// One host thread runs one kernel at a time. It shows logic, not speed or memory order.

#ifndef QLORA_TESTS_SUPPORT_SIMT_EXECUTOR_H_
#define QLORA_TESTS_SUPPORT_SIMT_EXECUTOR_H_

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

namespace qlora::simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreads = 1024;
// Shared memory of one block, as on the smallest card the project runs on.
inline constexpr int64_t kMaxSharedBytes = 227 * 1024;

struct Grid {
  const char* kernel = "";
  int64_t blocks_x = 1, blocks_y = 1, blocks_z = 1;
  int threads = 0;
  int64_t shared_bytes = 0;
};

// Runs `body` once for every thread of the grid. Empty, or what went wrong.
std::string RunGrid(const Grid& grid, const std::function<void()>& body);

// ---- Inside a kernel

struct Position {
  int thread, threads;
  int64_t block_x, block_y, block_z;
  int64_t grid_x, grid_y;
};
const Position& Here();

// Ends the launch with this message. Does not return.
[[noreturn]] void Fault(const std::string& what, const std::source_location& where);

void BlockBarrier(const std::source_location& where);

// Every lane of the warp brings `bytes` (at most kExchangeBytes) and sees those of all lanes after
// the call, until its next exchange: lane i's at result + i * kExchangeBytes.
inline constexpr int kExchangeBytes = 64;
const uint8_t* WarpExchange(const void* bring, int bytes, const std::source_location& where);

// Stops the calling thread until `ready` says true.
void WaitUntil(std::function<bool()> ready, const std::source_location& where);
// Runs `action` once no thread can go on without it; the last asked for first in odd blocks, the
// first in even ones. Asynchronous work that nobody waits for is a fault.
void Later(std::function<void()> action);
// A number for each block that ran, never the same twice.
int64_t BlockSerial();

uint8_t* SharedBase();
// Notes that the calling thread reads or writes these bytes of shared memory, and faults where it
// must not.
void CheckSharedRead(const void* data, int bytes, const std::source_location& where);
void CheckSharedWrite(const void* data, int bytes, const std::source_location& where);

// Asynchronous copies: bytes arrive in shared memory when the group they belong to is waited for.
void CopyAsync(void* to, const void* from, bool valid, const std::source_location& where);
void CopyAsyncCommit();
void CopyAsyncWait(int pending);

}  // namespace qlora::simt

#endif  // QLORA_TESTS_SUPPORT_SIMT_EXECUTOR_H_
