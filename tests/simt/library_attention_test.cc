// Attention that asks for the vendor's library, over a stand-in for cuDNN: that it is told of
// documents, heads and pitches as the ops mean them, that its tables and workspace are the op's,
// and what is refused before a run.

#include "kernels/cuda/library_attention.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/op_harness.h"
#include "tests/support/reference_ops.h"
#include "tests/support/simt/runtime.h"

namespace qlora::kernels::optest {
namespace {

using testing::HasSubstr;

class LibraryAttention : public testing::Test {
 protected:
  void SetUp() override { simt::SetCard({.major = 9}); }
  void TearDown() override { simt::SetCard({}); }
  static std::unique_ptr<Device> Card() { return *cuda::CreateCudaDevice({}); }
};

AttentionParams Params() {
  AttentionParams p;
  p.shape = {.query_heads = 4, .kv_heads = 2, .head_size = 16, .scale = 0.3f};
  // A gap between documents, and room for more of them.
  p.documents = {{0, 9, 0, 9}, {9, 1, 9, 1}, {12, 33, 12, 33}};
  p.spare_documents = 2;
  p.query_rows = p.key_rows = 50;
  p.pitched = true;
  return p;
}

// Empty where the op's result is right; run twice by one captured graph.
template <class OpType>
std::string Failure(OpCase<OpType> c, Device& device) {
  c.op.shape.kernel = AttentionKernel::kLibrary;
  const Op op = c.op;
  if (absl::Status s = device.Accept(op); !s.ok()) return std::string(s.message());
  auto run = DeviceRun::Create(device, *c.memory, {op});
  if (!run.ok()) return std::string(run.status().message());
  for (int i = 0; i < 2; ++i) {
    if (absl::Status s = (*run)->Upload(); !s.ok()) return std::string(s.message());
    if (absl::Status s = (*run)->Run(); !s.ok()) return std::string(s.message());
  }
  const auto result = (*run)->Download();
  if (!result.ok()) return std::string(result.status().message());
  return Difference(*c.memory, op, Reference(c.op), *result);
}

TEST_F(LibraryAttention, ComputesWhatTheOpsMean) {
  const auto device = Card();
  for (const int64_t window : {0, 7}) {
    for (const bool pitched : {false, true}) {
      AttentionParams p = Params();
      p.shape.window = window;
      p.pitched = pitched;
      EXPECT_EQ(Failure(MakeAttentionForward(p), *device), "") << window;
      EXPECT_EQ(Failure(MakeAttentionBackward(p), *device), "") << window;
    }
  }
  AttentionParams none = Params();
  none.documents.clear();
  EXPECT_EQ(Failure(MakeAttentionForward(none), *device), "");
}

std::string Refusal(const AttentionParams& p, Device& device) {
  AttentionForward op = MakeAttentionForward(p).op;
  op.shape.kernel = AttentionKernel::kLibrary;
  EXPECT_EQ(device.WorkspaceBytes(op), 0);
  const absl::Status status = device.Accept(op);
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  return std::string(status.message());
}

TEST_F(LibraryAttention, IsRefusedWithTheReason) {
  const auto device = Card();
  AttentionParams p = Params();
  p.shape.softcap = 30;
  EXPECT_THAT(Refusal(p, *device), HasSubstr("soft cap"));
  p = Params();
  p.shape.head_size = 20;
  EXPECT_THAT(Refusal(p, *device), HasSubstr("multiple of 8 up to 256"));
  p.shape.head_size = 264;
  EXPECT_THAT(Refusal(p, *device), HasSubstr("this model has 264"));
  p = Params();
  p.dtype = DType::kF32;
  EXPECT_THAT(Refusal(p, *device), HasSubstr("bf16"));
  simt::SetCard({.major = 8, .minor = 9});
  EXPECT_THAT(Refusal(Params(), *Card()), HasSubstr("has 8.9"));
}

TEST_F(LibraryAttention, IsNoCpusBusiness) {
  const auto cpu = *cpu::CreateCpuDevice({.threads = 1});
  AttentionForward op = MakeAttentionForward(Params()).op;
  EXPECT_TRUE(cpu->Accept(op).ok());
  op.shape.kernel = AttentionKernel::kLibrary;
  EXPECT_THAT(std::string(cpu->Accept(op).message()), HasSubstr("has its own attention only"));
}

}  // namespace
}  // namespace qlora::kernels::optest
