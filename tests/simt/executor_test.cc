// The SIMT executor itself: what it computes is what the documents say, and what it is there to
// find, it finds.

#include "tests/support/simt/executor.h"

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gpu/launch.h"
#include "gpu/primitives.h"
#include "gtest/gtest.h"
#include "tests/support/simt/runtime.h"

namespace qlora::gpu {
namespace {

using ::testing::HasSubstr;

// Runs one kernel to its end on memory of the host; empty, or what the executor says.
template <class... P, class... A>
std::string RunKernel(void (*kernel)(P...), const LaunchShape& shape, A... arguments) {
  return simt::RunGrid(
      {"test", shape.blocks_x, shape.blocks_y, shape.blocks_z, shape.threads, shape.shared_bytes},
      [&] { kernel(arguments...); });
}

// ---- What works

void SumOfBlock(const float* x, float* sum) {
  SharedMemory memory;
  Shared<float> partial = memory.Take<float>(ThreadCount() / 32);
  float value = x[BlockX() * ThreadCount() + ThreadX()];
  for (int mask = 16; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  if (Lane() == 0) partial[Warp()] = value;
  SyncThreads();
  if (ThreadX() != 0) return;
  float total = 0;
  for (int i = 0; i < ThreadCount() / 32; ++i) total += partial[i];
  sum[BlockX()] = total;
}

TEST(Executor, ShufflesAndBarriers) {
  std::vector<float> x(3 * 128), sum(3);
  std::iota(x.begin(), x.end(), 1.0f);
  ASSERT_EQ(RunKernel(SumOfBlock, {.blocks_x = 3, .threads = 128, .shared_bytes = 16}, x.data(),
                      sum.data()),
            "");
  EXPECT_EQ(sum, (std::vector<float>{8256, 24640, 41024}));
}

void BallotOfOddLanes(uint32_t* out) {
  const uint32_t bits = Ballot(Lane() % 2 == 1);
  if (Lane() == 7) *out = bits;
}

TEST(Executor, Ballot) {
  uint32_t bits = 0;
  ASSERT_EQ(RunKernel(BallotOfOddLanes, {.threads = 32}, &bits), "");
  EXPECT_EQ(bits, 0xaaaaaaaau);
}

// One 16×8 tile of a[16×16] · b[16×8], fragments filled element by element as PTX documents them,
// or by ldmatrix from row-major a and, transposed, from row-major b.
void OneTile(const uint16_t* a, const uint16_t* b, float* d, bool by_ldmatrix) {
  SharedMemory memory;
  Shared<uint16_t> sa = memory.Take<uint16_t>(256), sb = memory.Take<uint16_t>(16 * 16);
  for (int i = Lane(); i < 256; i += 32) {
    sa[i] = a[i];
    sb[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : uint16_t{0};
  }
  SyncThreads();
  const int g = Lane() / 4, t = Lane() % 4;
  uint32_t fa[4], fb[2];
  if (by_ldmatrix) {
    const int row = Lane() % 16, column = Lane() / 16 * 8;
    LoadMatrix4(fa, sa + (row * 16 + column));
    uint32_t both[4];
    LoadMatrix4Transposed(both, sb + (row * 16 + column));
    fb[0] = both[0];
    fb[1] = both[1];
  } else {
    const auto pair = [](uint16_t low, uint16_t high) { return uint32_t(high) << 16 | low; };
    for (int i = 0; i < 4; ++i) {
      const int at = (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
      fa[i] = pair(a[at], a[at + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * t + 8 * i;
      fb[i] = pair(b[row * 8 + g], b[(row + 1) * 8 + g]);
    }
  }
  float sum[4] = {};
  MatrixMultiplyAdd(sum, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

TEST(Executor, MatrixMultiplyAddAndLoadMatrix) {
  std::vector<uint16_t> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[i] = ToBf16(float(i % 7 - 3));
  for (int i = 0; i < 128; ++i) b[i] = ToBf16(float(i % 5 - 2) * 0.5f);
  for (bool by_ldmatrix : {false, true}) {
    std::vector<float> d(128);
    ASSERT_EQ(RunKernel(OneTile, {.threads = 32, .shared_bytes = 1024}, a.data(), b.data(),
                        d.data(), by_ldmatrix),
              "");
    for (int r = 0; r < 16; ++r) {
      for (int c = 0; c < 8; ++c) {
        float expected = 0;
        for (int k = 0; k < 16; ++k) expected += FromBf16(a[r * 16 + k]) * FromBf16(b[k * 8 + c]);
        EXPECT_EQ(d[r * 8 + c], expected) << r << ", " << c;
      }
    }
  }
}

TEST(Executor, BytePermuteAsPrmt) {
  EXPECT_EQ(BytePermute(0x33221100, 0x77665544, 0x7410), 0x77441100u);
  EXPECT_EQ(BytePermute(0x00008000, 0, 0x0009), 0x000000ffu | 0u) << "bit 3 spreads the sign";
}

void CopyThrough(const float* from, float* to, int wait) {
  SharedMemory memory;
  Shared<float> tile = memory.Take<float>(128);
  CopyAsync16(tile + 4 * Lane(), from + 4 * Lane(), Lane() < 30);
  CopyAsyncCommit();
  if (wait == 1) CopyAsyncWait<0>();
  SyncThreads();
  for (int i = 0; i < 4; ++i) to[4 * Lane() + i] = tile[4 * (31 - Lane()) + i];
  if (wait == 0) CopyAsyncWait<0>();
}

TEST(Executor, AsynchronousCopies) {
  alignas(16) float from[128];
  std::iota(from, from + 128, 1.0f);
  std::vector<float> to(128);
  ASSERT_EQ(RunKernel(CopyThrough, {.threads = 32, .shared_bytes = 512}, from, to.data(), 1), "");
  EXPECT_EQ(to[0], 0.0f) << "not valid: zeros";
  EXPECT_EQ(to[127], 4.0f);
  EXPECT_THAT(RunKernel(CopyThrough, {.threads = 32, .shared_bytes = 512}, from, to.data(), 0),
              HasSubstr("nobody has written"))
      << "read before it was waited for";
  EXPECT_THAT(RunKernel(CopyThrough, {.threads = 32, .shared_bytes = 512}, from, to.data(), 2),
              HasSubstr("nobody has written"));
}

// ---- What must be found

void OutOfBounds(int at) {
  SharedMemory memory;
  Shared<float> tile = memory.Take<float>(32);
  tile[Lane()] = 1;
  if (Lane() == 3) tile[at] = 2;
}

TEST(ExecutorFinds, SharedMemoryOutOfBounds) {
  for (int at : {32, -1}) {
    const std::string found = RunKernel(OutOfBounds, {.threads = 32, .shared_bytes = 128}, at);
    EXPECT_THAT(found, HasSubstr("out of bounds"));
    EXPECT_THAT(found, HasSubstr("thread 3, executor_test.cc:"));
  }
}

void Unwritten(float* out) {
  SharedMemory memory;
  Shared<float> tile = memory.Take<float>(32);
  if (Lane() != 5) tile[Lane()] = 1;
  SyncThreads();
  const float x = tile[Lane()];
  out[Lane()] = x;
}

TEST(ExecutorFinds, UnwrittenSharedMemory) {
  std::vector<float> out(32);
  EXPECT_THAT(RunKernel(Unwritten, {.threads = 32, .shared_bytes = 128}, out.data()),
              HasSubstr("thread 5, executor_test.cc:"));
  // What one block wrote, the next has not.
  const auto first_block_only = +[](float* o) {
    SharedMemory memory;
    Shared<float> tile = memory.Take<float>(32);
    if (BlockX() == 0) tile[Lane()] = 1;
    SyncThreads();
    const float x = tile[Lane()];
    o[Lane()] = x;
  };
  EXPECT_THAT(
      RunKernel(first_block_only, {.blocks_x = 2, .threads = 32, .shared_bytes = 128}, out.data()),
      HasSubstr("block (1, 0, 0)"));
}

// Each warp hands its lanes' numbers to the next warp; `how` says what stands between.
void PassOn(int how, float* out) {
  SharedMemory memory;
  Shared<float> tile = memory.Take<float>(64);
  tile[ThreadX()] = float(ThreadX());
  if (how == 0) SyncThreads();
  if (how == 1) SyncWarp();
  const int from = how == 3 ? ThreadX() ^ 1 : ThreadX() ^ 32;
  const float x = tile[from];
  out[ThreadX()] = x;
  if (how == 4) tile[from] = x;
}

TEST(ExecutorFinds, RacesInSharedMemory) {
  std::vector<float> out(64);
  const LaunchShape shape = {.threads = 64, .shared_bytes = 256};
  EXPECT_EQ(RunKernel(PassOn, shape, 0, out.data()), "");
  EXPECT_EQ(out[0], 32.0f);
  EXPECT_THAT(RunKernel(PassOn, shape, 1, out.data()), ::testing::Not(""))
      << "a barrier of the warp is none of the block";
  EXPECT_THAT(RunKernel(PassOn, shape, 2, out.data()), ::testing::Not(""));
  EXPECT_THAT(RunKernel(PassOn, shape, 3, out.data()), ::testing::Not("")) << "within a warp";
}

void WriteAfterRead(int how, float* out) {
  SharedMemory memory;
  Shared<float> tile = memory.Take<float>(64);
  tile[ThreadX()] = float(ThreadX());
  SyncThreads();
  const float x = tile[ThreadX() ^ 32];
  if (how == 0) SyncThreads();
  tile[ThreadX()] = x;
  out[ThreadX()] = x;
}

TEST(ExecutorFinds, WritesOverWhatOthersStillRead) {
  std::vector<float> out(64);
  const LaunchShape shape = {.threads = 64, .shared_bytes = 256};
  EXPECT_EQ(RunKernel(WriteAfterRead, shape, 0, out.data()), "");
  EXPECT_THAT(RunKernel(WriteAfterRead, shape, 1, out.data()), HasSubstr("race"));
}

void HalfBarrier(int how) {
  if (how == 0 && Warp() == 0) SyncThreads();
  if (how == 1) {
    if (Warp() == 0) {
      SyncThreads();
    } else {
      SyncThreads();
    }
  }
  if (how == 2 && Lane() < 16) SyncWarp();
}

TEST(ExecutorFinds, BarriersThatNotAllReach) {
  const LaunchShape shape = {.threads = 64};
  EXPECT_THAT(RunKernel(HalfBarrier, shape, 0), HasSubstr("divergent barrier"));
  EXPECT_THAT(RunKernel(HalfBarrier, shape, 1), HasSubstr("divergent barrier"));
  EXPECT_THAT(RunKernel(HalfBarrier, shape, 2), HasSubstr("divergent warp"));
  EXPECT_EQ(RunKernel(HalfBarrier, shape, 3), "") << "and goes on after a failed launch";
}

TEST(ExecutorFinds, ShapesThatNoCardTakes) {
  EXPECT_THAT(RunKernel(HalfBarrier, {.threads = 48}, 3), HasSubstr("48 threads"));
  EXPECT_THAT(RunKernel(HalfBarrier, {.threads = 2048}, 3), HasSubstr("2048 threads"));
  EXPECT_THAT(RunKernel(HalfBarrier, {.threads = 32, .shared_bytes = 1 << 20}, 3),
              HasSubstr("shared memory"));
}

// ---- The runtime

void AddOne(int32_t* x) { *x += 1; }
void Double(int32_t* x) { *x *= 2; }

class RuntimeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    stream_ = *CreateStream();
    x_ = static_cast<int32_t*>(*AllocateDevice(4));
    ASSERT_TRUE(FillZeroAsync(x_, 4, stream_).ok());
  }
  void TearDown() override {
    DestroyStream(stream_);
    FreeDevice(x_);
  }
  int32_t Value() {
    int32_t value = -1;
    EXPECT_TRUE(CopyAsync(&value, x_, 4, stream_).ok());
    EXPECT_TRUE(Synchronize(stream_).ok());
    return value;
  }

  Stream stream_;
  int32_t* x_;
};

TEST_F(RuntimeTest, LaunchesWaitUntilSomebodySynchronizes) {
  Launcher launcher(stream_);
  simt::ResetCounters();
  Launch(launcher, "add", &AddOne, {.threads = 32, .shared_bytes = 0}, x_);
  EXPECT_EQ(simt::Counters().launches, 0);
  EXPECT_EQ(Value(), 32);
  EXPECT_EQ(simt::Counters().launches, 1);
}

TEST_F(RuntimeTest, AGraphReplaysItsLaunchesInOrder) {
  ASSERT_TRUE(BeginCapture(stream_).ok());
  Launcher launcher(stream_);
  Launch(launcher, "add", &AddOne, {.threads = 32}, x_);
  Launch(launcher, "add", &AddOne, {.threads = 32}, x_);
  const Graph graph = *EndCapture(stream_);
  EXPECT_EQ(Value(), 0) << "captured, not run";
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(LaunchGraph(graph, stream_).ok());
  EXPECT_EQ(Value(), 3 * 64);
  DestroyGraph(graph);
}

TEST_F(RuntimeTest, StreamsMeetAtEventsAndNowhereElse) {
  bool overtaken = false;
  for (int i = 0; i < 20; ++i) {
    const Stream other = *CreateStream();
    const Event event = *CreateEvent();
    for (const bool ordered : {true, false}) {
      ASSERT_TRUE(FillZeroAsync(x_, 4, stream_).ok());
      ASSERT_TRUE(Synchronize(stream_).ok());
      Launcher first(stream_), second(other);
      Launch(first, "add", &AddOne, {.threads = 32}, x_);
      ASSERT_TRUE(Record(event, stream_).ok());
      if (ordered) {
        ASSERT_TRUE(Wait(other, event).ok());
      }
      Launch(second, "double", &Double, {.threads = 32}, x_);
      ASSERT_TRUE(Synchronize(other).ok());
      const int32_t value = Value();
      if (ordered) {
        EXPECT_NE(value, 32);
      } else {
        overtaken |= value == 32;
      }
    }
    DestroyEvent(event);
    DestroyStream(other);
  }
  EXPECT_TRUE(overtaken) << "without an event the order must vary";
}

TEST_F(RuntimeTest, TheHostCannotReadDeviceMemory) {
  EXPECT_DEATH(
      {
        volatile int32_t value = *x_;
        (void)value;
      },
      "");
}

TEST_F(RuntimeTest, AFailedKernelFailsTheStream) {
  Launcher launcher(stream_);
  Launch(launcher, "half", &HalfBarrier, {.threads = 64}, 0);
  const absl::Status status = Synchronize(stream_);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("kernel half"));
}

TEST_F(RuntimeTest, MemoryRunsOut) {
  const auto data = AllocateDevice(int64_t{1} << 50);
  EXPECT_TRUE(absl::IsResourceExhausted(data.status()));
}

}  // namespace
}  // namespace qlora::gpu
