#include "engine/lora/initialize.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

AdaptedModule Module(const std::string& path, int64_t in, int64_t rank) {
  return {.module = path, .in = in, .out = 8, .rank = rank};
}

std::vector<float> InitialA(uint64_t seed, const AdaptedModule& module) {
  std::vector<float> a(module.rank * module.in, NAN);
  InitializeLoraA(seed, module, absl::MakeSpan(a));
  return a;
}

TEST(InitializeLora, KeysAreFnv1a) {
  EXPECT_EQ(TensorKey(""), 0xcbf29ce484222325u);
  EXPECT_EQ(TensorKey("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(TensorKey("foobar"), 0x85944171f73967e8u);
}

TEST(InitializeLora, IsUniformOverItsRange) {
  const int64_t in = 400;
  const std::vector<float> a = InitialA(42, Module("m", in, 64));
  const double bound = 1.0 / 20.0;
  double sum = 0.0, squares = 0.0;
  std::vector<int> tenths(10);
  for (const float x : a) {
    ASSERT_LE(std::abs(x), bound * (1 + 1e-7));
    sum += x;
    squares += double(x) * x;
    ++tenths[std::min(9, static_cast<int>((x / bound + 1.0) * 5.0))];
  }
  const double n = double(a.size());
  // Five standard deviations of each: uniform variance is bound²/3, of its square 4 bound⁴/45.
  EXPECT_NEAR(sum / n, 0.0, 5.0 * bound / std::sqrt(3.0 * n));
  EXPECT_NEAR(squares / n, bound * bound / 3.0, 5.0 * bound * bound * std::sqrt(4.0 / 45.0 / n));
  for (const int count : tenths) EXPECT_NEAR(count, n / 10, 5.0 * std::sqrt(n * 0.09));
  EXPECT_GT(std::set<float>(a.begin(), a.end()).size(), a.size() * 99 / 100);
}

TEST(InitializeLora, DependsOnSeedKeyAndElementAlone) {
  const AdaptedModule module = Module("model.layers.0.mlp.up_proj", 30, 4);
  const std::vector<float> a = InitialA(7, module);
  EXPECT_EQ(InitialA(7, module), a);
  EXPECT_NE(InitialA(8, module), a);
  EXPECT_NE(InitialA(uint64_t{7} << 32 | 7, module), a);
  EXPECT_NE(InitialA(7, Module("model.layers.1.mlp.up_proj", 30, 4)), a);
  // A higher rank goes on behind the same numbers.
  const std::vector<float> longer = InitialA(7, Module("model.layers.0.mlp.up_proj", 30, 5));
  EXPECT_TRUE(std::equal(a.begin(), a.end(), longer.begin()));
}

TEST(InitializeLora, WritesCountsThatAreNoMultipleOfFour) {
  for (const int64_t in : {1, 2, 3, 5, 7}) {
    AdaptedModule module = Module("m", in, 1);
    std::vector<float> a(in + 1, 99.0f);
    InitializeLoraA(1, module, absl::MakeSpan(a).subspan(0, in));
    EXPECT_EQ(a[in], 99.0f);
    for (int64_t i = 0; i < in; ++i) EXPECT_NE(a[i], 99.0f);
  }
}

// Committed values: an adapter must start the same in every later version.
TEST(InitializeLora, NeverChanges) {
  const std::vector<float> a = InitialA(42, Module("model.layers.0.self_attn.q_proj", 64, 1));
  EXPECT_EQ(a[0], -0x1.6a0f560000000p-5f);
  EXPECT_EQ(a[1], 0x1.d3d6300000000p-4f);
  EXPECT_EQ(a[63], 0x1.ea11e80000000p-5f);
}

TEST(LoraSize, CountsAndText) {
  ModelSpec spec;  // Llama 3.2 1B
  spec.hidden = 2048;
  spec.layers = 16;
  spec.query_heads = 32;
  spec.kv_heads = 8;
  spec.head_size = 64;
  spec.intermediate = 8192;
  spec.vocab = 128256;
  spec.tied_embeddings = true;
  proto::Lora lora;
  lora.set_r(16);
  lora.set_lora_alpha(16);
  lora.add_target_modules("all-linear");
  const std::vector<WeightRow> rows = WeightRows(spec);
  const LoraTargets targets = *ResolveLoraTargets(lora, rows);
  const LoraSize size = MeasureLora(targets, rows);
  // As PEFT's print_trainable_parameters has it: 11,272,192 of 1,247,086,592.
  EXPECT_EQ(size.trained_parameters, 11272192);
  EXPECT_EQ(size.model_parameters, 1235814400);
  EXPECT_DOUBLE_EQ(size.share, 11272192.0 / 1247086592.0);
  EXPECT_EQ(size.adapter_bytes, 22544384);
  EXPECT_EQ(LoraSizeLine(targets, size),
            "trained: 11,272,192 of 1,247,086,592 parameters (0.9039 %): r = 16 on 112 linears; "
            "adapter 21.5 MiB");
}

}  // namespace
}  // namespace qlora::engine
