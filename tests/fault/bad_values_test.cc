// Values in the base that no scale can hold, or that a layer can't bear, through the program: what
// quantizes all the same is trained on, what does not is refused by its tensor's name, and what
// goes bad on the way is traced to where.
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/io/safetensors.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

using testing::HasSubstr;

constexpr char kWeight[] = "model.layers.0.self_attn.q_proj.weight";
constexpr uint16_t kHuge = 0x7f00;  // as bf16: 1.7e38

class BadValues : public Workplace {
 protected:
  // Puts `value` over elements [first, first + count) of a tensor, all of it where count is 0.
  template <class T>
  void Overwrite(const std::string& file, const std::string& tensor, T value, size_t first = 0,
                 size_t count = 0) const {
    const auto opened = engine::SafetensorsFile::Open(engine::Env::Default(), Path(file));
    ASSERT_TRUE(opened.ok()) << opened.status();
    const engine::TensorInfo* const info = opened->Find(tensor);
    ASSERT_NE(info, nullptr) << tensor;
    std::string bytes = Read(file);
    if (count == 0) count = size_t(info->bytes) / sizeof(T);
    for (size_t i = first; i < first + count; ++i) {
      std::memcpy(&bytes[size_t(info->offset) + i * sizeof(T)], &value, sizeof(T));
    }
    Write(file, bytes);
  }
};

// A block of zeros has the scale zero, whose reciprocal is infinite.
TEST_F(BadValues, BlocksOfZerosQuantizeAndTrain) {
  for (const char* double_quant : {"true", "false"}) {
    const std::vector<std::string> set = {
        "--set", absl::StrCat("quantization.bnb_4bit_use_double_quant=", double_quant), "--set",
        "overwrite_output_dir=true"};
    Overwrite<uint16_t>("base/model.safetensors", kWeight, 0, 64, 64);
    Overwrite<uint16_t>("base/model.safetensors", "model.layers.1.mlp.up_proj.weight", 0);
    const CommandResult trained = Run("train", set);
    EXPECT_EQ(trained.exit_code, 0) << trained.err;
    EXPECT_EQ(trained.err, "");
    const CommandResult quantized = Run("quantize", set);
    ASSERT_EQ(quantized.exit_code, 0) << quantized.err;
    const CommandResult again = Run(
        "train", {"--set", "model=" + Path("out/quantized"), "--set", "output_dir=" + Path("again"),
                  set[0], set[1], "--set", "overwrite_output_dir=true"});
    EXPECT_EQ(again.exit_code, 0) << again.err;
    EXPECT_TRUE(Read("again/adapter_model.safetensors") == Read("out/adapter_model.safetensors"));
  }
}

TEST_F(BadValues, AScaleThatIsNotFiniteIsRefusedByName) {
  for (const char* double_quant : {"true", "false"}) {
    const std::string set = absl::StrCat("quantization.bnb_4bit_use_double_quant=", double_quant);
    ASSERT_EQ(Run("quantize", {"--set", set, "--set", "overwrite_output_dir=true"}).exit_code, 0);
    const std::string file = "out/quantized/model.safetensors", good = Read(file);
    std::vector<std::string> scales = {".absmax"};
    if (set.ends_with("true")) scales = {".nested_absmax", ".nested_quant_map"};
    for (const std::string& scale : scales) {
      for (const float value :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Overwrite<float>(file, kWeight + scale, value, 0, 1);
        ExpectCommandRefused("train", 65, {file, kWeight + scale},
                             {"--set", set, "--set", "model=" + Path("out/quantized"), "--set",
                              "output_dir=" + Path("again")});
        Write(file, good);
      }
    }
  }
}

// Finite, but more than their products can be.
TEST_F(BadValues, WeightsThatOverflowEndTheRunByTheirLayersName) {
  Overwrite<uint16_t>("base/model.safetensors", kWeight, kHuge);
  const CommandResult result = Run("train", {"--set", "training.max_consecutive_nonfinite=2"});
  EXPECT_EQ(result.exit_code, 76) << result.out << result.err;
  const std::string cause = "The first value that is not finite is in layer 0 ";
  EXPECT_THAT(result.err, HasSubstr("warning: step 1: gradients or loss are not finite; the update "
                                    "was skipped. " +
                                    cause));
  EXPECT_THAT(result.err, HasSubstr("error: 2 steps in a row"));
  EXPECT_THAT(result.err.substr(result.err.find("error: ")), HasSubstr(cause));
}

}  // namespace
}  // namespace qlora::tests
