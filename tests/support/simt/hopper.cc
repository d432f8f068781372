#include "tests/support/simt/hopper.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "quant/float_formats.h"
#include "tests/support/simt/executor.h"

namespace qlora::simt {
namespace {

// Shared memory's first byte has this address: not a multiple of what operands must be aligned to.
constexpr uint32_t kWindow = 640;
constexpr int kPiece = 16;
constexpr int kInstructionDepth = 16, kRows = 64, kWarpgroup = 128;

struct Barrier {
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  uint32_t phases = 0;  // that have ended
  void MaybeEnd() {
    if (pending == 0 && bytes == 0) ++phases, pending = expected;
  }
};
struct Meeting {
  int arrived = 0;
  int64_t generation = 0;
};
// The operands of one product as they were when its first thread began it.
struct Operands {
  uint64_t a = 0, b = 0;
  bool a_mn_major = false;
  int columns = 0;
  std::vector<float> a_values, b_values;  // [row][16]
};
struct Product {
  float* d;
  int count;
  std::shared_ptr<Operands> operands;
};
struct Thread {
  std::vector<std::vector<Product>> groups;
  std::vector<Product> open;
  int64_t begun = 0, waits = 0;
  bool fenced = false;
};

// Of the block that runs.
struct State {
  int64_t serial = -1;
  std::map<uint32_t, Barrier> barriers;
  std::map<int, Meeting> meetings;
  std::vector<int> unfenced;  // thread that wrote a piece and has passed no fence since; -1: none
  std::vector<std::vector<int>> written;  // pieces of each thread
  std::map<std::pair<int, int64_t>, std::weak_ptr<Operands>> begun;
  std::map<std::pair<int, int64_t>, std::shared_ptr<bool>> over;  // each warp's waits
  std::vector<Thread> threads;
};
State& Get() {
  static State state;
  if (state.serial != BlockSerial()) {
    state = State();
    state.serial = BlockSerial();
    state.unfenced.assign(kMaxSharedBytes / kPiece, -1);
    state.written.resize(kMaxThreads);
    state.threads.resize(kMaxThreads);
  }
  return state;
}

uint8_t* At(int64_t address, int64_t bytes, int64_t alignment, const Where& where) {
  if (address < kWindow || address - kWindow + bytes > kMaxSharedBytes) {
    Fault(absl::StrCat("shared address ", address, " out of bounds"), where);
  }
  if (address % alignment != 0) {
    Fault(absl::StrCat("shared address ", address, " not aligned to ", alignment), where);
  }
  return SharedBase() + (address - kWindow);
}

Barrier& BarrierAt(uint32_t address, const Where& where) {
  const auto it = Get().barriers.find(address);
  if (it == Get().barriers.end()) Fault("no barrier was initialised there", where);
  return it->second;
}

std::vector<float> Values(uint64_t descriptor, bool mn_major, int rows, const Where& where) {
  std::vector<float> values(rows * kInstructionDepth);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < kInstructionDepth; ++k) {
      const int64_t address = OperandAddress(descriptor, mn_major, r, k);
      const uint8_t* at = At(address, 2, 2, where);
      const int writer = Get().unfenced[(address - kWindow) / kPiece];
      if (writer >= 0) {
        Fault(absl::StrCat("a product reads what thread ", writer,
                           " wrote without a proxy fence behind it"),
              where);
      }
      uint16_t bits;
      std::memcpy(&bits, at, 2);
      values[r * kInstructionDepth + k] = quant::F32FromBf16(bits);
    }
  }
  return values;
}
bool SameBytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

void Finish(const Product& product, const Where& where) {
  const Operands& o = *product.operands;
  // Once a warp: a comparison of all operands is not cheap.
  if (Here().thread % kWarpSize == 0 &&
      (!SameBytes(o.a_values, Values(o.a, o.a_mn_major, kRows, where)) ||
       !SameBytes(o.b_values, Values(o.b, false, o.columns, where)))) {
    Fault("an operand changed while a product read it", where);
  }
  for (int i = 0; i < product.count; ++i) {
    const auto [row, column] = ResultOf(Here().thread % kWarpgroup, i);
    const float* a = &o.a_values[row * kInstructionDepth];
    const float* b = &o.b_values[column * kInstructionDepth];
    float sum = product.d[i];
    for (int k = 0; k < kInstructionDepth; ++k) sum += a[k] * b[k];
    product.d[i] = sum;
  }
}

}  // namespace

int64_t OperandAddress(uint64_t descriptor, bool mn_major, int row, int k) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) return -1;
  const int64_t start = int64_t(descriptor & 0x3fff) << 4;
  const int64_t leading = int64_t(descriptor >> 16 & 0x3fff) << 4;
  const int64_t stride = int64_t(descriptor >> 32 & 0x3fff) << 4;
  int64_t address = start;
  if (mn_major) {
    // Core matrices of 64 rows by 8 of depth: rows along 128 bytes, depth from line to line.
    address += row % 64 * 2 + row / 64 * leading + k % 8 * 128 + k / 8 * stride;
  } else {
    // Core matrices of 8 rows; all 16 of depth lie within their lines.
    address += k * 2 + row % 8 * 128 + row / 8 * stride;
  }
  return address ^ (address >> 7 & 7) << 4;
}

std::array<int, 2> ResultOf(int thread, int i) {
  const int warp = thread >> 5, lane = thread & 31;
  return {16 * warp + (lane >> 2) + ((i & 2) != 0 ? 8 : 0),
          (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)};
}

uint32_t SharedAddressOf(const void* data) {
  return uint32_t(static_cast<const uint8_t*>(data) - SharedBase()) + kWindow;
}

void BarrierInit(uint32_t barrier, int arrivals, const Where& where) {
  At(barrier, 8, 8, where);
  Get().barriers[barrier] = {.expected = arrivals, .pending = arrivals};
}
void BarrierArrive(uint32_t barrier, uint32_t announced_bytes, const Where& where) {
  Barrier& b = BarrierAt(barrier, where);
  b.bytes += announced_bytes;
  if (--b.pending < 0) Fault("more arrivals than the barrier expects", where);
  b.MaybeEnd();
}
void BarrierWait(uint32_t barrier, uint32_t parity, const Where& where) {
  BarrierAt(barrier, where);
  WaitUntil([barrier, parity] { return (Get().barriers[barrier].phases & 1) != parity; }, where);
}
void NamedBarrier(int number, int threads, const Where& where) {
  if (number < 1 || number > 15 || threads % kWarpSize != 0) Fault("no such barrier", where);
  Meeting& meeting = Get().meetings[number];
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  const int64_t mine = meeting.generation;
  WaitUntil([number, mine] { return Get().meetings[number].generation != mine; }, where);
}

void TensorLoad(uint32_t to, const kernels::ConstTensor& matrix, int box_rows, int row, int column,
                uint32_t barrier, const Where& where) {
  constexpr int kColumns = 64, kLine = 128;
  const int bytes = box_rows * kLine;
  uint8_t* const base = At(to, bytes, 1024, where);
  if (BarrierAt(barrier, where).bytes < bytes) {
    Fault("a copy whose bytes the barrier has not been told of", where);
  }
  std::memset(base, 0xff, bytes);
  Later([=] {
    for (int r = 0; r < box_rows; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        const int64_t i = int64_t{row} + r, j = int64_t{column} + c;
        uint16_t bits = 0;
        if (i >= 0 && i < matrix.rows && j >= 0 && j < matrix.cols) {
          bits = matrix.Row<uint16_t>(i)[j];
        }
        uint32_t address = to + uint32_t(r * kLine + c * 2);
        address ^= (address >> 7 & 7) << 4;
        std::memcpy(SharedBase() + (address - kWindow), &bits, 2);
      }
    }
    Barrier& b = Get().barriers[barrier];
    b.bytes -= bytes;
    b.MaybeEnd();
  });
}
void FenceAsyncProxy() {
  State& state = Get();
  const int me = Here().thread;
  for (const int piece : state.written[me]) {
    if (state.unfenced[piece] == me) state.unfenced[piece] = -1;
  }
  state.written[me].clear();
}

void StoreShared(uint32_t to, const void* data, const Where& where) {
  std::memcpy(At(to, kPiece, kPiece, where), data, kPiece);
  State& state = Get();
  const int piece = int(to - kWindow) / kPiece;
  state.unfenced[piece] = Here().thread;
  state.written[Here().thread].push_back(piece);
}
void LoadShared(uint32_t from, void* data, const Where& where) {
  std::memcpy(data, At(from, kPiece, kPiece, where), kPiece);
}

void WarpgroupFence() { Get().threads[Here().thread].fenced = true; }
void WarpgroupMultiplyAdd(float* d, int count, uint64_t a, uint64_t b, bool a_mn_major,
                          const Where& where) {
  State& state = Get();
  Thread& thread = state.threads[Here().thread];
  if (!thread.fenced) Fault("a product without a warpgroup fence before it", where);
  const std::pair<int, int64_t> key = {Here().thread / kWarpgroup, thread.begun++};
  std::shared_ptr<Operands> operands = state.begun[key].lock();
  if (operands == nullptr) {
    operands = std::make_shared<Operands>();
    operands->a = a, operands->b = b, operands->a_mn_major = a_mn_major;
    operands->columns = 2 * count;
    operands->a_values = Values(a, a_mn_major, kRows, where);
    operands->b_values = Values(b, false, 2 * count, where);
    state.begun[key] = operands;
  }
  if (operands->a != a || operands->b != b || operands->a_mn_major != a_mn_major) {
    Fault("threads of a warpgroup begin different products", where);
  }
  thread.open.push_back({d, count, std::move(operands)});
}
void WarpgroupCommit(const Where&) {
  Thread& thread = Get().threads[Here().thread];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
  thread.fenced = false;
}
void WarpgroupWait(int pending, const Where& where) {
  State& state = Get();
  Thread& thread = state.threads[Here().thread];
  if (int(thread.groups.size()) > pending) {
    // A product takes as long as it can, so that whoever may change its operands does.
    std::shared_ptr<bool>& over = state.over[{Here().thread / kWarpSize, thread.waits++}];
    if (over == nullptr) {
      over = std::make_shared<bool>(false);
      Later([over] { *over = true; });
    }
    WaitUntil([over] { return *over; }, where);
  }
  while (int(thread.groups.size()) > pending) {
    for (const Product& product : thread.groups.front()) Finish(product, where);
    thread.groups.erase(thread.groups.begin());
  }
  WarpExchange(nullptr, 0, where);
}

}  // namespace qlora::simt
