#include "engine/model/rope_table.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model/families.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_files.h"

namespace qlora::engine {
namespace {

// Each case: config -> RopeSpec -> table, against Transformers' own.
TEST(RopeTable, EqualsTransformers) {
  const auto configs = nlohmann::json::parse(GoldenModelText("rope_configs.json"));
  const auto golden =
      SafetensorsFile::Open(Env::Default(), GoldenModelPath("rope_expected.safetensors"));
  ASSERT_TRUE(golden.ok()) << golden.status();
  const std::vector<int32_t> positions = TensorValues<int32_t>(*golden, "positions");
  ASSERT_GE(configs.size(), 15u);
  for (const auto& [name, config] : configs.items()) {
    SCOPED_TRACE(name);
    const auto spec = ParseModelConfig(config.dump(), name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    const RopeSpec& rope = spec->rope;
    const int64_t pairs = rope.rotary_dims / 2;

    const std::vector<float> inverse = TensorValues<float>(*golden, name + ".inv_freq");
    const std::vector<double> ours = RopeInverseFrequencies(rope);
    ASSERT_EQ(ours.size(), inverse.size());
    for (int64_t i = 0; i < pairs; ++i) {
      // Theirs: a power, divisions and a blend in fp32. The blend cancels next to its ends.
      EXPECT_NEAR(ours[i], inverse[i], std::abs(ours[i]) * 16 * 0x1p-24) << i;
    }

    const int64_t rows = positions.back() + 1;
    std::vector<float> cos(rows * pairs), sin(rows * pairs);
    FillRopeTable(rope, rows, absl::MakeSpan(cos), absl::MakeSpan(sin));
    const std::vector<float> their_cos = TensorValues<float>(*golden, name + ".cos");
    const std::vector<float> their_sin = TensorValues<float>(*golden, name + ".sin");
    ASSERT_EQ(their_cos.size(), positions.size() * pairs);
    for (size_t p = 0; p < positions.size(); ++p) {
      for (int64_t i = 0; i < pairs; ++i) {
        // Their angle is off by its own 17 roundings; cos and sin have slope 1.
        const double angle = positions[p] * ours[i];
        const double bound = rope.attention_factor * (angle * 17 * 0x1p-24 + 4 * 0x1p-24);
        const int64_t at = positions[p] * pairs + i;
        EXPECT_NEAR(cos[at], their_cos[p * pairs + i], bound) << positions[p] << " " << i;
        EXPECT_NEAR(sin[at], their_sin[p * pairs + i], bound) << positions[p] << " " << i;
      }
    }
  }
}

TEST(RopeTable, IsRoundedOnceFromExactAngles) {
  // theta = 10^4, d = 4: inverse frequencies 1 and 1/100 exactly as a double has them.
  const RopeSpec rope{.rotary_dims = 4};
  const int64_t rows = 100001;
  std::vector<float> cos(rows * 2), sin(rows * 2);
  FillRopeTable(rope, rows, absl::MakeSpan(cos), absl::MakeSpan(sin));
  EXPECT_EQ(cos[0], 1.0f);
  EXPECT_EQ(sin[0], 0.0f);
  EXPECT_EQ(cos[2 * 100000], static_cast<float>(std::cos(100000.0)));
  EXPECT_EQ(sin[2 * 100000], static_cast<float>(std::sin(100000.0)));
  EXPECT_FLOAT_EQ(sin[2 * 100000 + 1], static_cast<float>(std::sin(1000.0)));
}

TEST(RopeTable, EmptyTables) {
  FillRopeTable({.rotary_dims = 8}, 0, {}, {});
  FillRopeTable({.rotary_dims = 0}, 5, {}, {});
  EXPECT_TRUE(RopeInverseFrequencies({.rotary_dims = 0}).empty());
}

}  // namespace
}  // namespace qlora::engine
