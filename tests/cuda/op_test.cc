// Every op of op_list.h on the CUDA backend, on a card or under the SIMT executor, over all its
// cases:
//   - each output element within its bound of the fp64 reference,
//   - every other byte as it was: inputs, rows behind the live ones, gaps between rows, guards,
//   - the captured graph, run again, gives the same bytes.
// QLORA_TEST_SEED picks other contents and shapes; a failure names the seed and case to run again.

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

constexpr int kReportedFailures = 4;

uint64_t Seed() {
  const char* seed = std::getenv("QLORA_TEST_SEED");
  return seed == nullptr ? kDefaultSeed : std::strtoull(seed, nullptr, 10);
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
std::string Failure(const OpCase<OpType>& c, Device& device) {
  const Op op = c.op;
  auto run = DeviceRun::Create(device, *c.memory, {op});
  if (!run.ok()) return std::string(run.status().message());
  if (absl::Status s = (*run)->Run(); !s.ok()) return std::string(s.message());
  const auto result = (*run)->Download();
  if (!result.ok()) return std::string(result.status().message());
  std::string difference = Difference(*c.memory, op, Reference(c.op), *result);
  if (!difference.empty()) return difference;
  difference = MoreDifferences(c.op, std::get<OpType>(ViewsInto(*c.memory, op, *result)));
  if (!difference.empty()) return difference;
  if (absl::Status s = (*run)->Upload(); !s.ok()) return std::string(s.message());
  if (absl::Status s = (*run)->Run(); !s.ok()) return std::string(s.message());
  const auto again = (*run)->Download();
  if (!again.ok()) return std::string(again.status().message());
  difference = FirstByteDifference(*c.memory, op, *result, *again);
  return difference.empty() ? "" : "the second run differs from the first: " + difference;
}

template <class OpType>
void RunAllCases() {
  int failures = 0;
  for (int i = 0; i < OpCases<OpType>::Count() && failures < kReportedFailures; ++i) {
    // A device of its own for each case: an error in one says nothing about the next.
    auto device = cuda::CreateCudaDevice({});
    ASSERT_TRUE(device.ok()) << device.status();
    const OpCase<OpType> c = OpCases<OpType>::Make(i, Seed());
    const std::string failure = Failure(c, **device);
    if (failure.empty()) continue;
    ++failures;
    ADD_FAILURE() << OpType::kName << " case " << i << " of seed " << Seed() << ": " << c.name
                  << "\n  " << failure;
  }
}

struct NamedOp {
  const char* name;
  void (*run)();
};
#define QLORA_NAMED_OP(OpType) {OpType::kName, &RunAllCases<OpType>},
const NamedOp kOps[] = {QLORA_FOR_EACH_OP(QLORA_NAMED_OP)};
#undef QLORA_NAMED_OP

class CudaOpTest : public ::testing::TestWithParam<NamedOp> {};

TEST_P(CudaOpTest, MatchesTheReference) { GetParam().run(); }

INSTANTIATE_TEST_SUITE_P(All, CudaOpTest, ::testing::ValuesIn(kOps),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::kernels::optest
