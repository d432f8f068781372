// Every op of op_list.h, on every instruction set of this machine, over all its cases:
//   - each output element within its bound of the fp64 reference,
//   - every other byte as it was: inputs, rows behind the live ones, gaps between rows, guards,
//   workspace guards,
//   - one thread and two give equal bytes.
// QLORA_TEST_SEED picks other contents and shapes; a failure names the seed and case to run again.

#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

// A test that is wrong in one place is often wrong in all: this many are enough to see.
constexpr int kReportedFailures = 4;

uint64_t Seed() {
  const char* seed = std::getenv("QLORA_TEST_SEED");
  return seed == nullptr ? kDefaultSeed : std::strtoull(seed, nullptr, 10);
}

std::unique_ptr<Device> NewCpu(cpu::Isa isa, int threads) {
  auto device = cpu::CreateCpuDevice({.threads = threads, .isa = isa});
  if (!device.ok()) {
    ADD_FAILURE() << device.status();
    return nullptr;
  }
  return *std::move(device);
}

absl::StatusOr<std::vector<uint8_t>> RunOn(Device& device, const OperandMemory& memory,
                                           const Op& op) {
  auto run = DeviceRun::Create(device, memory, {op});
  if (!run.ok()) return run.status();
  if (absl::Status s = (*run)->Run(); !s.ok()) return s;
  return (*run)->Download();
}

template <class OpType>
std::string MoreDifferences(const OpType&, const OpType&) {
  return "";
}
std::string MoreDifferences(const AdamW& before, const AdamW& after) {
  return CheckCodedStates(before, after);
}

// Empty where the case passes.
template <class OpType>
std::string Failure(const OpCase<OpType>& c, Device& one, Device& two) {
  const Op op = c.op;
  const auto result = RunOn(one, *c.memory, op);
  if (!result.ok()) return std::string(result.status().message());
  std::string difference = Difference(*c.memory, op, Reference(c.op), *result);
  if (!difference.empty()) return difference;
  difference = MoreDifferences(c.op, std::get<OpType>(ViewsInto(*c.memory, op, *result)));
  if (!difference.empty()) return difference;
  const auto other = RunOn(two, *c.memory, op);
  if (!other.ok()) return std::string(other.status().message());
  difference = FirstByteDifference(*c.memory, op, *result, *other);
  return difference.empty() ? "" : "two threads differ from one: " + difference;
}

template <class OpType>
void RunAllCases(cpu::Isa isa) {
  static_assert(sizeof(OpCases<OpType>) > 0, "an op without cases");
  ASSERT_GE(OpCases<OpType>::Count(), kMinCases);
  const auto one = NewCpu(isa, 1), two = NewCpu(isa, 2);
  ASSERT_TRUE(one != nullptr && two != nullptr);
  int failures = 0;
  for (int i = 0; i < OpCases<OpType>::Count() && failures < kReportedFailures; ++i) {
    const OpCase<OpType> c = OpCases<OpType>::Make(i, Seed());
    const std::string failure = Failure(c, *one, *two);
    if (failure.empty()) continue;
    ++failures;
    ADD_FAILURE() << OpType::kName << " case " << i << " of seed " << Seed() << ", "
                  << cpu::NameOf(isa) << ": " << c.name << "\n  " << failure;
  }
}

struct NamedOp {
  const char* name;
  void (*run)(cpu::Isa);
};
#define QLORA_NAMED_OP(OpType) {OpType::kName, &RunAllCases<OpType>},
const NamedOp kOps[] = {QLORA_FOR_EACH_OP(QLORA_NAMED_OP)};
#undef QLORA_NAMED_OP

class OpTest : public ::testing::TestWithParam<std::tuple<NamedOp, cpu::Isa>> {};

TEST_P(OpTest, MatchesTheReference) {
  const auto& [op, isa] = GetParam();
  op.run(isa);
}

INSTANTIATE_TEST_SUITE_P(All, OpTest,
                         ::testing::Combine(::testing::ValuesIn(kOps),
                                            ::testing::ValuesIn(cpu::AvailableIsas())),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "_" +
                                  cpu::NameOf(std::get<1>(info.param));
                         });

// The harness itself: what it is there to find, it finds.
class HarnessTest : public ::testing::Test {
 protected:
  HarnessTest() : c_(MakeAddGradient({.n = 40, .pitched = true})), result_(c_.memory->Image()) {
    for (int i = 0; i < 40; ++i) View(c_.op.into)[i] += c_.op.from.Row<float>(0)[i];
  }
  float* View(const ConstTensor& t) {
    return reinterpret_cast<float*>(result_.data() + c_.memory->OffsetOf(t.data));
  }
  std::string Found() { return Difference(*c_.memory, c_.op, Reference(c_.op), result_); }

  OpCase<AddGradient> c_;
  std::vector<uint8_t> result_;
};

TEST_F(HarnessTest, AcceptsTheRightResult) { EXPECT_EQ(Found(), ""); }

TEST_F(HarnessTest, FindsAWrongElement) {
  View(c_.op.into)[17] += 1e-3f;
  EXPECT_THAT(Found(), ::testing::HasSubstr("into (row 0, column 17)"));
}

TEST_F(HarnessTest, FindsNan) {
  View(c_.op.into)[3] = std::nanf("");
  EXPECT_THAT(Found(), ::testing::HasSubstr("into (row 0, column 3)"));
}

TEST_F(HarnessTest, FindsAWriteBehindAnOutput) {
  View(c_.op.into)[40] = 0;
  EXPECT_THAT(Found(), ::testing::HasSubstr("into, 1 bytes behind its last element"));
}

TEST_F(HarnessTest, FindsAWriteBeforeAnOutput) {
  View(c_.op.into)[-1] = 0;
  EXPECT_THAT(Found(), ::testing::HasSubstr("before its first element"));
}

TEST_F(HarnessTest, FindsAChangedInput) {
  View(c_.op.from)[39] += 1;
  EXPECT_THAT(Found(), ::testing::HasSubstr("from (row 0, column 39)"));
}

TEST(HarnessDeadRows, FindsAWriteBehindTheLiveRowsOrIntoAGap) {
  OpCase<Rope> c = MakeRope({.rows = 4,
                             .cols = 8,
                             .dtype = DType::kF32,
                             .live = 0,
                             .pitched = true,
                             .seed = 3,
                             .head_size = 8,
                             .rotary = 8,
                             .positions = 5});
  ASSERT_GT(c.op.y.pitch, c.op.y.cols);
  for (int64_t column : {int64_t{2}, c.op.y.cols}) {
    std::vector<uint8_t> result = c.memory->Image();
    float* y = reinterpret_cast<float*>(result.data() + c.memory->OffsetOf(c.op.y.data));
    y[c.op.y.pitch + column] = 1;
    EXPECT_THAT(Difference(*c.memory, c.op, Reference(c.op), result),
                ::testing::HasSubstr("y (row 1, column " + std::to_string(column)));
  }
}

}  // namespace
}  // namespace qlora::kernels::optest
