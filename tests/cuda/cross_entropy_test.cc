// Linear + cross-entropy over vocabularies longer than a block's reach: the op's random cases end
// at about a thousand words, where a row's running maximum, its tiles and the barriers between them
// have barely begun.

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"

namespace qlora::kernels::optest {
namespace {

std::string Failure(const CrossEntropyParams& params) {
  const OpCase<LinearCrossEntropy> c = MakeLinearCrossEntropy(params);
  const Op op = c.op;
  auto device = cuda::CreateCudaDevice({});
  if (!device.ok()) return std::string(device.status().message());
  auto run = DeviceRun::Create(**device, *c.memory, {op});
  if (!run.ok()) return std::string(run.status().message());
  if (absl::Status s = (*run)->Run(); !s.ok()) return std::string(s.message());
  const auto result = (*run)->Download();
  if (!result.ok()) return std::string(result.status().message());
  const std::string difference = Difference(*c.memory, op, Reference(c.op), *result);
  return difference.empty() ? "" : c.name + "\n  " + difference;
}

CrossEntropyParams Params(DType type, int64_t vocabulary) {
  CrossEntropyParams p;
  p.head.rows = 6;
  p.head.in = 8;
  p.head.out = vocabulary;
  p.head.x = p.head.y = type;
  p.head.base = LinearBase::Kind::kDense;
  p.head.dense = type;
  p.head.seed = uint64_t(vocabulary);
  p.capacity = 5;
  p.trained = 4;
  p.chunk_rows = 3;
  return p;
}

TEST(CrossEntropyTest, ReachesOverLongVocabularies) {
  for (DType type : {DType::kBf16, DType::kF32}) {
    for (int64_t vocabulary : {2049, 8195, 20000}) {
      EXPECT_EQ(Failure(Params(type, vocabulary)), "");
    }
  }
}

TEST(CrossEntropyTest, CapsLogitsOfLongVocabularies) {
  CrossEntropyParams p = Params(DType::kBf16, 9001);
  p.softcap = 3.0f;
  p.accumulate = true;
  EXPECT_EQ(Failure(p), "");
}

}  // namespace
}  // namespace qlora::kernels::optest
