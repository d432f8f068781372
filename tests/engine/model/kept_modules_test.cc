#include "engine/model/kept_modules.h"

#include "engine/model/families.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/golden_files.h"

namespace qlora::engine {
namespace {

TEST(KeptModules, AreNamedWholeOrByTheirEnds) {
  const std::string module = "model.layers.1.mlp.down_proj";
  EXPECT_TRUE(NamesModule(module, module));
  EXPECT_TRUE(NamesModule("model.layers.1", module));
  EXPECT_TRUE(NamesModule("down_proj", module));
  EXPECT_TRUE(NamesModule("mlp.down_proj", module));
  EXPECT_FALSE(NamesModule("model.layers.1", "model.layers.10.mlp.down_proj"));
  EXPECT_FALSE(NamesModule("proj", module));
}

TEST(KeptModules, AreNotQuantizable) {
  ModelSpec spec = *ReadModelConfig(Env::Default(), GoldenModelPath("llama"));
  const std::vector<std::string> names = {"model.layers.0", "down_proj"};
  ASSERT_TRUE(KeepIn16Bits(names, &spec).ok());
  int kept = 0;
  for (const WeightRow& row : WeightRows(spec)) kept += row.lora_target && !row.quantizable;
  EXPECT_EQ(kept, 7 + 1);
  const std::vector<std::string> wrong = {"model.layers.0", "down_prj", "lm_head"};
  const absl::Status status = KeepIn16Bits(wrong, &spec);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("keep_in_16_bits[1]"),
                             testing::HasSubstr("nearest: down_proj"),
                             testing::HasSubstr("keep_in_16_bits[2]")));
}

}  // namespace
}  // namespace qlora::engine
