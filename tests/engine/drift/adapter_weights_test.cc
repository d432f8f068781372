#include "engine/drift/adapter_weights.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

AdaptedModule Module(const std::string& name, int64_t in, int64_t out) {
  return {.module = name, .in = in, .out = out};
}

const std::vector<AdaptedModule> kModules = {Module("model.layers.0.mlp.up_proj", 3, 2),
                                             Module("model.layers.0.mlp.down_proj", 2, 3)};

class AdapterWeightsTest : public testing::Test {
 protected:
  AdapterWeightsTest() {
    weights_ = {.r = 4, .lora_alpha = 6, .use_rslora = true};
    for (const AdaptedModule& m : kModules) {
      AdapterWeights::Factors& factors = weights_.modules[m.module];
      factors = {.in = m.in, .out = m.out};
      for (int64_t i = 0; i < 4 * m.in; ++i) factors.a.push_back(0.1f * float(i - 5));
      for (int64_t i = 0; i < 4 * m.out; ++i) factors.b.push_back(0.3f * float(i * m.in));
    }
  }

  absl::StatusOr<AdapterWeights> WriteAndRead(const std::vector<AdaptedModule>& modules) const {
    const absl::Status written =
        WriteAdapterWeights(Env::Default(), folder_.path(), weights_, 0, "base");
    EXPECT_TRUE(written.ok()) << written;
    return ReadAdapterWeights(Env::Default(), folder_.path(), modules);
  }

  tests::TempFolder folder_;
  AdapterWeights weights_;
};

TEST_F(AdapterWeightsTest, AreReadAsTheyWereWritten) {
  const auto read = WriteAndRead(kModules);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->Scaling(), 3.0f);  // 6 / √4
  EXPECT_EQ(read->Bytes(), 2 * 4 * (3 + 2) * 4);
  ASSERT_EQ(read->modules.size(), 2u);
  for (const auto& [name, factors] : weights_.modules) {
    const AdapterWeights::Factors& found = read->modules.at(name);
    EXPECT_EQ(found.in, factors.in);
    EXPECT_EQ(found.out, factors.out);
    EXPECT_EQ(found.a, factors.a);
    EXPECT_EQ(found.b, factors.b);
  }
}

// Slots are as large as the model's linears: an adapter of other shapes must not get so far.
TEST_F(AdapterWeightsTest, OfAnotherModelsShapesAreRefused) {
  std::vector<AdaptedModule> wider = kModules;
  wider[0].in = 5;
  const auto read = WriteAndRead(wider);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("up_proj.lora_A.weight is F32"));
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("needed is [4, 5]"));
}

TEST_F(AdapterWeightsTest, WhatIsNotFiniteIsNamed) {
  for (const bool in_b : {false, true}) {
    AdapterWeights::Factors& factors = weights_.modules[kModules[1].module];
    std::vector<float>& values = in_b ? factors.b : factors.a;
    const float before = values[7];
    values[7] = in_b ? -std::numeric_limits<float>::infinity() : std::nanf("");
    const auto read = WriteAndRead(kModules);
    values[7] = before;
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(proto::ExitCodeOf(read.status()), proto::kExitBadData);
    EXPECT_THAT(std::string(read.status().message()),
                HasSubstr(in_b ? "down_proj.lora_B.weight holds NaN or infinity at element 7"
                               : "down_proj.lora_A.weight holds NaN or infinity at element 7"));
  }
}

}  // namespace
}  // namespace qlora::engine
