// Attention as cudnn-frontend's graphs: what the frontend itself checks of them, without a card.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/nvidia/cudnn_graph.h"

namespace qlora::gpu {
namespace {

using testing::HasSubstr;

SdpaProblem Problem(bool backward) {
  SdpaProblem p = {.backward = backward,
                   .tokens = 4096,
                   .documents = 16,
                   .query_heads = 32,
                   .kv_heads = 8,
                   .head_size = 128,
                   .scale = 0.088f};
  p.pitch = {4096, 1024, 1024, 4096, 32, 4096, 4096, 1024, 1024};
  return p;
}

class CudnnGraph : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status loaded = LoadCudnn(); !loaded.ok()) GTEST_SKIP() << loaded;
  }
};

TEST_F(CudnnGraph, IsValid) {
  for (const bool backward : {false, true}) {
    for (const int64_t window : {0, 1024}) {
      SdpaProblem p = Problem(backward);
      p.window = window;
      const auto graph = SdpaGraph(p, 90);
      EXPECT_TRUE(graph.ok()) << graph.status();
    }
  }
}

TEST_F(CudnnGraph, IsRefusedInTheFrontendsWords) {
  SdpaProblem p = Problem(true);
  p.head_size = 512;
  p.pitch = {16384, 4096, 4096, 16384, 32, 16384, 16384, 4096, 4096};
  const auto wide = SdpaGraph(p, 90);
  EXPECT_TRUE(absl::IsUnimplemented(wide.status())) << wide.status();
  EXPECT_THAT(std::string(wide.status().message()), HasSubstr("refuses this attention: "));
  p = Problem(false);
  p.kv_heads = 7;
  EXPECT_FALSE(SdpaGraph(p, 90).ok());
}

}  // namespace
}  // namespace qlora::gpu
