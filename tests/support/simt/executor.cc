#include "tests/support/simt/executor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/simt/fiber.h"

namespace qlora::simt {
namespace {

// What is known of two neighbouring bytes of shared memory: kernels that run under the executor
// keep nothing smaller there. A tick is one barrier of the block; a warp tick one exchange of a
// warp. Ticks never repeat within a launch, so nothing is cleared between blocks.
struct CellHistory {
  int32_t written_block = -1;  // serial number of the block that wrote it; else it is unwritten
  int32_t write_tick = -1, write_warp_tick = -1;
  int32_t read_tick = -1, read_warp_tick = -1;
  int16_t writer = -1;
  int16_t reader = -1;  // kManyReaders: threads of several warps
};
constexpr int16_t kManyReaders = -2;
constexpr int kCellBytes = 2;

struct Exchange {
  uint8_t bytes[2][kWarpSize][kExchangeBytes];  // two in turn: a fast lane may be one ahead
  int arrived = 0;
  int32_t tick = 0;
  std::source_location where;
};

struct PendingCopy {
  uint8_t* to;
  uint8_t bytes[16];
  std::source_location where;
};

enum class Waits : uint8_t { kNothing, kWarp, kBlock, kCondition, kDone };

struct Thread {
  Fiber fiber;
  Waits waits = Waits::kDone;
  std::source_location where;
  std::function<bool()> ready;                   // kCondition
  std::vector<std::vector<PendingCopy>> groups;  // committed copies, oldest first
  std::vector<PendingCopy> open;
};

std::string LineOf(const std::source_location& where) {
  const char* file = std::strrchr(where.file_name(), '/');
  return absl::StrCat(file == nullptr ? where.file_name() : file + 1, ":", where.line());
}

bool SamePlace(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

// One launch.
class Executor {
 public:
  static Executor& Get() {
    static Executor executor;
    return executor;
  }

  std::string Run(const Grid& grid, const std::function<void()>& body) {
    if (grid.threads <= 0 || grid.threads > kMaxThreads || grid.threads % kWarpSize != 0) {
      return absl::StrCat("kernel ", grid.kernel, ": ", grid.threads,
                          " threads a block; allowed: multiples of 32 up to 1024");
    }
    if (grid.shared_bytes < 0 || grid.shared_bytes > kMaxSharedBytes) {
      return absl::StrCat("kernel ", grid.kernel, ": ", grid.shared_bytes,
                          " bytes of shared memory; allowed: 0 to ", kMaxSharedBytes);
    }
    grid_ = &grid;
    body_ = &body;
    failure_.clear();
    history_.assign(grid.shared_bytes / kCellBytes + 1, CellHistory());
    tick_ = block_serial_ = 0;
    for (Exchange& exchange : exchanges_) exchange.tick = 0;
    position_.threads = grid.threads;
    position_.grid_x = grid.blocks_x;
    position_.grid_y = grid.blocks_y;
    for (int64_t z = 0; z < grid.blocks_z && failure_.empty(); ++z) {
      for (int64_t y = 0; y < grid.blocks_y && failure_.empty(); ++y) {
        for (int64_t x = 0; x < grid.blocks_x && failure_.empty(); ++x) {
          position_.block_x = x;
          position_.block_y = y;
          position_.block_z = z;
          RunBlock();
        }
      }
    }
    grid_ = nullptr;
    return failure_;
  }

  const Position& position() const { return position_; }
  uint8_t* shared() { return shared_; }

  [[noreturn]] void Fail(const std::string& what, const std::source_location& where) {
    failure_ = absl::StrCat("kernel ", grid_->kernel, ", block (", position_.block_x, ", ",
                            position_.block_y, ", ", position_.block_z, "), thread ",
                            position_.thread, ", ", LineOf(where), ": ", what);
    SwitchFiber(&Current().fiber, &scheduler_);
    std::abort();  // a failed fiber is never resumed
  }

  void Barrier(const std::source_location& where) {
    Thread& thread = Current();
    thread.where = where;
    if (at_barrier_ > 0 && !SamePlace(where, barrier_place_)) {
      Fail(absl::StrCat("divergent barrier: other threads of the block wait at ",
                        LineOf(barrier_place_)),
           where);
    }
    barrier_place_ = where;
    if (++at_barrier_ == grid_->threads) {
      at_barrier_ = 0;
      ++tick_;
      for (int i = 0; i < grid_->threads; ++i) threads_[i]->waits = Waits::kNothing;
      return;
    }
    thread.waits = Waits::kBlock;
    SwitchFiber(&thread.fiber, &scheduler_);
  }

  void WaitUntil(std::function<bool()> ready, const std::source_location& where) {
    if (ready()) return;
    Thread& thread = Current();
    thread.where = where;
    thread.ready = std::move(ready);
    thread.waits = Waits::kCondition;
    SwitchFiber(&thread.fiber, &scheduler_);
  }
  void Later(std::function<void()> action) { later_.push_back(std::move(action)); }
  int64_t serial() const { return serial_; }

  const uint8_t* Meet(const void* bring, int bytes, const std::source_location& where) {
    Thread& thread = Current();
    Exchange& exchange = exchanges_[position_.thread / kWarpSize];
    if (exchange.arrived > 0 && !SamePlace(where, exchange.where)) {
      Fail(absl::StrCat("divergent warp: other lanes wait at ", LineOf(exchange.where)), where);
    }
    exchange.where = thread.where = where;
    uint8_t(*slots)[kExchangeBytes] = exchange.bytes[exchange.tick & 1];
    if (bytes > 0) std::memcpy(slots[position_.thread % kWarpSize], bring, bytes);
    if (++exchange.arrived == kWarpSize) {
      exchange.arrived = 0;
      ++exchange.tick;
      const int first = position_.thread / kWarpSize * kWarpSize;
      for (int i = first; i < first + kWarpSize; ++i) threads_[i]->waits = Waits::kNothing;
    } else {
      thread.waits = Waits::kWarp;
      SwitchFiber(&thread.fiber, &scheduler_);
    }
    return slots[0];
  }

  void CheckRange(const void* data, int bytes, const std::source_location& where) {
    const int64_t offset = static_cast<const uint8_t*>(data) - shared_;
    if (offset < 0 || offset + bytes > grid_->shared_bytes) {
      Fail(absl::StrCat("shared memory out of bounds: bytes ", offset, " to ", offset + bytes,
                        " of ", grid_->shared_bytes),
           where);
    }
  }

  void Read(const void* data, int bytes, const std::source_location& where) {
    const CellHistory* end = nullptr;
    CellHistory* cell = CellsOf(data, bytes, where, &end);
    const int16_t me = int16_t(position_.thread);
    const int32_t warp_tick = exchanges_[me / kWarpSize].tick;
    for (; cell < end; ++cell) {
      if (cell->written_block != block_serial_) {
        Fail(absl::StrCat("reads byte ", ByteOf(cell),
                          " of shared memory, which nobody has written"),
             where);
      }
      if (cell->write_tick == tick_ && IsForeign(cell->writer, cell->write_warp_tick, warp_tick)) {
        Fail(
            absl::StrCat("race: reads byte ", ByteOf(cell), " of shared memory, written by thread ",
                         cell->writer, " with no barrier between"),
            where);
      }
      const bool others_read =
          cell->read_tick == tick_ &&
          (cell->reader == kManyReaders || cell->reader / kWarpSize != me / kWarpSize);
      cell->reader = others_read ? kManyReaders : me;
      cell->read_tick = tick_;
      cell->read_warp_tick = warp_tick;
    }
  }

  void Write(const void* data, int bytes, const std::source_location& where) {
    const CellHistory* end = nullptr;
    CellHistory* cell = CellsOf(data, bytes, where, &end);
    const int16_t me = int16_t(position_.thread);
    const int32_t warp_tick = exchanges_[me / kWarpSize].tick;
    for (; cell < end; ++cell) {
      if (cell->written_block == block_serial_ && cell->write_tick == tick_ &&
          IsForeign(cell->writer, cell->write_warp_tick, warp_tick)) {
        Fail(absl::StrCat("race: writes byte ", ByteOf(cell),
                          " of shared memory, written by thread ", cell->writer,
                          " with no barrier between"),
             where);
      }
      if (cell->read_tick == tick_ && (cell->reader == kManyReaders ||
                                       IsForeign(cell->reader, cell->read_warp_tick, warp_tick))) {
        Fail(absl::StrCat("race: writes byte ", ByteOf(cell), " of shared memory, read by thread ",
                          cell->reader, " with no barrier between"),
             where);
      }
      cell->written_block = block_serial_;
      cell->write_tick = tick_;
      cell->write_warp_tick = warp_tick;
      cell->writer = me;
    }
  }

  Thread& Current() { return *threads_[position_.thread]; }

 private:
  Executor() {
    shared_ = static_cast<uint8_t*>(
        mmap(nullptr, kMaxSharedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (shared_ == MAP_FAILED) std::abort();
  }

  CellHistory* CellsOf(const void* data, int bytes, const std::source_location& where,
                       const CellHistory** end) {
    CheckRange(data, bytes, where);
    const int64_t offset = static_cast<const uint8_t*>(data) - shared_;
    if (offset % kCellBytes != 0 || bytes % kCellBytes != 0) {
      Fail("shared memory holds elements of two bytes at least", where);
    }
    CellHistory* first = history_.data() + offset / kCellBytes;
    *end = first + bytes / kCellBytes;
    return first;
  }
  int64_t ByteOf(const CellHistory* cell) const { return (cell - history_.data()) * kCellBytes; }
  // Whether what `thread` did at `its_tick` of its warp is not ordered before what the current
  // thread does now, no barrier of the block standing between.
  bool IsForeign(int16_t thread, int32_t its_tick, int32_t warp_tick) const {
    if (thread == position_.thread) return false;
    return thread / kWarpSize != position_.thread / kWarpSize || its_tick == warp_tick;
  }

  static void Main() {
    Executor& self = Get();
    for (;;) {
      (*self.body_)();
      Thread& thread = self.Current();
      if (!thread.open.empty() || !thread.groups.empty()) {
        self.Fail("ends with asynchronous copies it has not waited for",
                  thread.open.empty() ? thread.groups[0][0].where : thread.open[0].where);
      }
      thread.waits = Waits::kDone;
      SwitchFiber(&thread.fiber, &self.scheduler_);
    }
  }

  // Odd blocks run their warps, and the lanes in them, last to first: what depends on an order that
  // nothing guarantees comes out differently.
  void RunBlock() {
    ++block_serial_;
    ++serial_;
    ++tick_;
    at_barrier_ = 0;
    later_.clear();
    // A kernel must not count on what a block before it left behind.
    std::memset(shared_, 0xff, grid_->shared_bytes);
    while (int(threads_.size()) < grid_->threads) {
      threads_.push_back(std::make_unique<Thread>());
    }
    for (int i = 0; i < grid_->threads; ++i) {
      Thread& thread = *threads_[i];
      if (thread.waits != Waits::kDone || !thread.fiber.IsMade()) thread.fiber.Make(&Main);
      thread.waits = Waits::kNothing;
      thread.groups.clear();
      thread.open.clear();
    }
    const int warps = grid_->threads / kWarpSize;
    for (int w = 0; w < warps; ++w) exchanges_[w].arrived = 0;
    const bool backwards = block_serial_ % 2 == 1;
    for (;;) {
      bool progress = false;
      for (int w = 0; w < warps; ++w) progress |= RunWarp(backwards ? warps - 1 - w : w, backwards);
      if (!failure_.empty()) return Abandon();
      if (progress) continue;
      if (later_.empty()) break;
      RunOneLater(backwards);
      if (!failure_.empty()) return Abandon();
    }
    // Nothing can go on: all are done, or somebody waits for one who will not come.
    for (int i = 0; i < grid_->threads; ++i) {
      const Thread& thread = *threads_[i];
      if (thread.waits == Waits::kDone) continue;
      failure_ = absl::StrCat(
          "kernel ", grid_->kernel, ", block (", position_.block_x, ", ", position_.block_y, ", ",
          position_.block_z, "), thread ", i, ", ", LineOf(thread.where),
          thread.waits == Waits::kCondition ? ": waits for what nobody will do"
          : thread.waits == Waits::kBlock ? ": divergent barrier: not all threads of the block come"
                                          : ": divergent warp: not all its lanes come");
      return Abandon();
    }
  }

  void RunOneLater(bool backwards) {
    const auto at = backwards ? later_.end() - 1 : later_.begin();
    const std::function<void()> action = std::move(*at);
    later_.erase(at);
    for (int i = 0; i < grid_->threads; ++i) {
      if (threads_[i]->waits != Waits::kDone) return action();
    }
    failure_ = absl::StrCat("kernel ", grid_->kernel,
                            ": ends with asynchronous work that nobody has waited for");
  }

  bool RunWarp(int warp, bool backwards) {
    bool progress = false;
    for (;;) {
      bool again = false;
      for (int i = 0; i < kWarpSize; ++i) {
        const int lane = backwards ? kWarpSize - 1 - i : i;
        const int index = warp * kWarpSize + lane;
        Thread& thread = *threads_[index];
        if (thread.waits == Waits::kCondition && thread.ready()) thread.waits = Waits::kNothing;
        if (thread.waits != Waits::kNothing) continue;
        position_.thread = index;
        SwitchFiber(&scheduler_, &threads_[index]->fiber);
        if (!failure_.empty()) return true;
        again = progress = true;
      }
      if (!again) return progress;
    }
  }

  // Fibers that stopped midway start anew in the next launch.
  void Abandon() {
    for (auto& thread : threads_) {
      thread->fiber.Reset();
      thread->waits = Waits::kDone;
    }
  }

  const Grid* grid_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::string failure_;
  Position position_ = {};
  Fiber scheduler_;
  std::vector<std::unique_ptr<Thread>> threads_;
  Exchange exchanges_[kMaxThreads / kWarpSize];
  int at_barrier_ = 0;
  std::source_location barrier_place_;
  int32_t tick_ = 0, block_serial_ = 0;
  int64_t serial_ = 0;
  std::vector<std::function<void()>> later_;
  uint8_t* shared_ = nullptr;
  std::vector<CellHistory> history_;
};

// The bytes of asynchronous copies count as written when they arrive.
void Arrive(std::vector<PendingCopy>& group) {
  for (PendingCopy& copy : group) {
    Executor::Get().Write(copy.to, 16, copy.where);
    std::memcpy(copy.to, copy.bytes, 16);
  }
}

}  // namespace

std::string RunGrid(const Grid& grid, const std::function<void()>& body) {
  return Executor::Get().Run(grid, body);
}
const Position& Here() { return Executor::Get().position(); }
void Fault(const std::string& what, const std::source_location& where) {
  Executor::Get().Fail(what, where);
}
void BlockBarrier(const std::source_location& where) { Executor::Get().Barrier(where); }
const uint8_t* WarpExchange(const void* bring, int bytes, const std::source_location& where) {
  return Executor::Get().Meet(bring, bytes, where);
}
void WaitUntil(std::function<bool()> ready, const std::source_location& where) {
  Executor::Get().WaitUntil(std::move(ready), where);
}
void Later(std::function<void()> action) { Executor::Get().Later(std::move(action)); }
int64_t BlockSerial() { return Executor::Get().serial(); }
uint8_t* SharedBase() { return Executor::Get().shared(); }
void CheckSharedRead(const void* data, int bytes, const std::source_location& where) {
  Executor::Get().Read(data, bytes, where);
}
void CheckSharedWrite(const void* data, int bytes, const std::source_location& where) {
  Executor::Get().Write(data, bytes, where);
}

void CopyAsync(void* to, const void* from, bool valid, const std::source_location& where) {
  Executor& executor = Executor::Get();
  executor.CheckRange(to, 16, where);
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    executor.Fail("asynchronous copy that is not aligned to 16 bytes", where);
  }
  PendingCopy copy = {static_cast<uint8_t*>(to), {}, where};
  if (valid) std::memcpy(copy.bytes, from, 16);
  executor.Current().open.push_back(copy);
}
void CopyAsyncCommit() {
  Thread& thread = Executor::Get().Current();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}
void CopyAsyncWait(int pending) {
  Thread& thread = Executor::Get().Current();
  while (int(thread.groups.size()) > pending) {
    Arrive(thread.groups.front());
    thread.groups.erase(thread.groups.begin());
  }
}

}  // namespace qlora::simt
