// The deferred device: that it really changes the order, sees what is declared wrongly, keeps the
// host out, and gives the CPU's bytes where all is right. Its cases of every op show that each op
// declares every operand that it touches.

#include "tests/support/deferred_device.h"

#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"

namespace qlora::kernels::optest {
namespace {

using Declared = DeferredOptions::Declared;

std::unique_ptr<Device> NewCpu() { return *cpu::CreateCpuDevice({.threads = 2}); }

DeferredDevice NewDeferred(uint64_t seed, decltype(DeferredOptions::declared) declared = nullptr) {
  return DeferredDevice(NewCpu(), {.seed = seed, .declared = std::move(declared)});
}

// A program over a few vectors in which the order of dependent ops counts and independent ones
// abound.
struct Program {
  static constexpr int kVectors = 12, kLength = 40;

  Program() : memory(7, true) {
    std::vector<Tensor> vectors;
    for (int i = 0; i < kVectors; ++i) {
      vectors.push_back(memory.NewRow(DType::kF32, kLength));
      FillNormal(memory.random(), vectors.back(), 1);
    }
    for (int i = 0; i < 60; ++i) {
      const int64_t from = memory.random().Below(kVectors);
      const int64_t into = (from + 1 + memory.random().Below(kVectors - 1)) % kVectors;
      if (i % 10 == 9) {
        ops.push_back(Zero{.x = vectors[from]});
      } else {
        ops.push_back(AddGradient{.from = vectors[from], .into = vectors[into]});
      }
    }
  }

  OperandMemory memory;
  std::vector<Op> ops;
};

std::vector<uint8_t> Result(Device& device, const Program& program) {
  auto run = *DeviceRun::Create(device, program.memory, program.ops);
  EXPECT_TRUE(run->Run().ok());
  return *run->Download();
}

TEST(DeferredDevice, ChangesTheOrderAndNotTheBytes) {
  const Program program;
  const auto cpu = NewCpu();
  const std::vector<uint8_t> expected = Result(*cpu, program);
  std::set<std::vector<int64_t>> orders;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    DeferredDevice device = NewDeferred(seed);
    EXPECT_EQ(Result(device, program), expected) << "seed " << seed;
    EXPECT_GT(device.overtakings(), 5);
    EXPECT_EQ(device.ops_run(), int64_t(program.ops.size()));
    orders.insert(device.last_order());
  }
  EXPECT_EQ(orders.size(), 20u);
}

TEST(DeferredDevice, TheSameSeedGivesTheSameOrder) {
  const Program program;
  DeferredDevice a = NewDeferred(4), b = NewDeferred(4);
  Result(a, program);
  Result(b, program);
  EXPECT_EQ(a.last_order(), b.last_order());
}

TEST(DeferredDevice, AWriteThatIsDeclaredAsAReadShows) {
  const Program program;
  const auto cpu = NewCpu();
  const std::vector<uint8_t> expected = Result(*cpu, program);
  int seen = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    DeferredDevice device = NewDeferred(seed, [](absl::string_view, absl::string_view operand) {
      return operand == "into" ? Declared::kAsRead : Declared::kRightly;
    });
    seen += Result(device, program) != expected;
  }
  EXPECT_GT(seen, 15);
}

TEST(DeferredDeviceDeathTest, AnOperandThatIsNotDeclaredFaults) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const Program program;
  EXPECT_DEATH(
      {
        DeferredDevice device = NewDeferred(1, [](absl::string_view, absl::string_view operand) {
          return operand == "from" ? Declared::kNotAtAll : Declared::kRightly;
        });
        Result(device, program);
      },
      "");
}

TEST(DeferredDeviceDeathTest, TheHostCannotTouchDeviceMemory) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  DeferredDevice device = NewDeferred(1);
  const Buffer buffer = *device.Allocate(100);
  volatile uint8_t* bytes = static_cast<uint8_t*>(buffer.data());
  EXPECT_DEATH(bytes[3] = 1, "");
  EXPECT_DEATH(std::exit(bytes[3]), "");
}

TEST(DeferredDeviceDeathTest, OpsThatNobodyWaitsForAreABug) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(
      {
        DeferredDevice device = NewDeferred(1);
        const Buffer buffer = *device.Allocate(64);
        auto piece = *device.Prepare({Zero{.x = {buffer.data(), DType::kU8, 1, 64, 64}}});
        (void)piece->Run();
      },
      "never waited for");
}

TEST(DeferredDevice, MemoryIsZeroedAndCopiesGoIntoTheMiddle) {
  DeferredDevice device = NewDeferred(1);
  EXPECT_FALSE(device.info().is_host);
  const Buffer buffer = *device.Allocate(100);
  std::vector<uint8_t> bytes(100, 9);
  ASSERT_TRUE(device.CopyOut(bytes.data(), buffer.data(), 100).ok());
  EXPECT_EQ(bytes, std::vector<uint8_t>(100, 0));
  uint8_t* middle = static_cast<uint8_t*>(buffer.data()) + 40;
  const uint8_t two[] = {5, 6};
  ASSERT_TRUE(device.CopyIn(middle, two, 2).ok());
  ASSERT_TRUE(device.CopyOut(bytes.data(), buffer.data(), 100).ok());
  EXPECT_EQ(bytes[39], 0);
  EXPECT_EQ(bytes[40], 5);
  EXPECT_EQ(bytes[41], 6);
  EXPECT_EQ(device.CopyIn(static_cast<uint8_t*>(buffer.data()) + 99, two, 2).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*device.Allocate(0)).data(), nullptr);
}

TEST(DeferredDevice, RefusesAnOperandThatIsNotInItsMemory) {
  DeferredDevice device = NewDeferred(1);
  float host[4] = {};
  const auto piece = device.Prepare({Zero{.x = {host, DType::kF32, 1, 4, 4}}});
  EXPECT_EQ(piece.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(piece.status().message()), ::testing::HasSubstr("operand x of zero"));
}

// Two vectors of four: into += from, three times, with other contents each time.
TEST(DeferredDevice, OnePieceRunsManyTimesWithOtherContents) {
  DeferredDevice device = NewDeferred(3);
  const Buffer buffer = *device.Allocate(128);
  const auto view = [&](int64_t offset) {
    return Tensor{static_cast<uint8_t*>(buffer.data()) + offset, DType::kF32, 1, 4, 4};
  };
  std::vector<Op> ops = {AddGradient{.from = view(0), .into = view(64)}};
  auto piece = *device.Prepare(ops);
  ops.clear();  // a piece keeps its own
  for (float value : {1.0f, 2.0f, 4.0f}) {
    const float from[4] = {value, value, value, value};
    ASSERT_TRUE(device.CopyIn(view(0).data, from, sizeof from).ok());
    ASSERT_TRUE(piece->Run().ok());
    ASSERT_TRUE(device.Synchronize().ok());
  }
  float sum[4];
  ASSERT_TRUE(device.CopyOut(sum, view(64).data, sizeof sum).ok());
  EXPECT_EQ(sum[2], 7.0f);
}

TEST(DeferredDevice, RunOnlyQueuesAndCopiesMustNotRace) {
  DeferredDevice device = NewDeferred(3);
  const Buffer buffer = *device.Allocate(192);
  const auto at = [&](int64_t offset) { return static_cast<uint8_t*>(buffer.data()) + offset; };
  const auto view = [&](int64_t offset) { return Tensor{at(offset), DType::kF32, 1, 16, 16}; };
  auto piece = *device.Prepare({AddGradient{.from = view(0), .into = view(64)}});
  const std::vector<float> ones(16, 1.0f);
  ASSERT_TRUE(device.CopyIn(at(0), ones.data(), 64).ok());
  ASSERT_TRUE(piece->Run().ok());
  EXPECT_EQ(device.ops_run(), 0);
  std::vector<float> host(16);
  // What the op reads may be read, what lies elsewhere may be written; the rest is a race.
  EXPECT_TRUE(device.CopyOut(host.data(), at(0), 64).ok());
  EXPECT_TRUE(device.CopyIn(at(128), ones.data(), 64).ok());
  EXPECT_EQ(device.CopyIn(at(60), ones.data(), 4).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(device.CopyIn(at(124), ones.data(), 8).code(), absl::StatusCode::kFailedPrecondition);
  const absl::Status early = device.CopyOut(host.data(), at(64), 64);
  EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(early.message()), ::testing::HasSubstr("add_gradient"));
  ASSERT_TRUE(device.Synchronize().ok());
  EXPECT_EQ(device.ops_run(), 1);
  EXPECT_TRUE(device.CopyOut(host.data(), at(64), 64).ok());
  EXPECT_EQ(host, ones);
}

// Every op through the deferred device: an operand that its Visit forgets would fault, an output
// that it declares as input would be missed by the comparison.
template <class OpType>
void ExpectTheCpusBytes() {
  const auto cpu = NewCpu();
  DeferredDevice deferred = NewDeferred(11);
  for (int i = 0; i < OpCases<OpType>::Count(); i += 7) {
    const OpCase<OpType> c = OpCases<OpType>::Make(i);
    std::vector<uint8_t> results[2];
    Device* const devices[] = {cpu.get(), &deferred};
    for (int d = 0; d < 2; ++d) {
      auto run = DeviceRun::Create(*devices[d], *c.memory, {c.op});
      ASSERT_TRUE(run.ok()) << run.status();
      const absl::Status status = (*run)->Run();
      ASSERT_TRUE(status.ok()) << status;
      results[d] = *(*run)->Download();
    }
    EXPECT_EQ(FirstByteDifference(*c.memory, c.op, results[0], results[1]), "") << c.name;
  }
}

struct NamedOp {
  const char* name;
  void (*run)();
};
#define QLORA_NAMED_OP(OpType) {OpType::kName, &ExpectTheCpusBytes<OpType>},
const NamedOp kOps[] = {QLORA_FOR_EACH_OP(QLORA_NAMED_OP)};
#undef QLORA_NAMED_OP

class DeferredOpTest : public ::testing::TestWithParam<NamedOp> {};
TEST_P(DeferredOpTest, GivesTheCpusBytes) { GetParam().run(); }
INSTANTIATE_TEST_SUITE_P(All, DeferredOpTest, ::testing::ValuesIn(kOps),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::kernels::optest
