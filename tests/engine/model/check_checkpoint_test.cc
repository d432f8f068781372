#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/errors.h"
#include "tests/engine/model/loading_fixture.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kQ[] = "model.layers.0.self_attn.q_proj.weight";
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kHead[] = "lm_head.weight";

class CheckCheckpointTest : public ::testing::Test {
 protected:
  absl::Status Check(const EditableModel& model, proto::Mode::Value mode = proto::Mode::QLORA,
                     const quant::QuantSpec& quant = {}) {
    const ShardedModel saved = model.Save(folder_);
    spec_ = SpecOf(folder_.path());
    return CheckCheckpoint(saved, mode, quant, &spec_, &warnings_);
  }

  tests::TempFolder folder_;
  ModelSpec spec_;
  std::vector<std::string> warnings_;
};

TEST_F(CheckCheckpointTest, GoldenModelsPassWithoutWarning) {
  for (const std::string name :
       {"llama", "llama3_tied", "llama_bias", "llama_linear", "llama_yarn", "mistral", "qwen2",
        "qwen2_window", "qwen3", "prequantized/nf4_double"}) {
    EXPECT_TRUE(Check(EditableModel(name)).ok()) << name;
    EXPECT_THAT(warnings_, IsEmpty()) << name;
  }
}

// A config that says another type than the files hold must cost no values.
TEST_F(CheckCheckpointTest, TheStoredTypeIsTheFilesOne) {
  EditableModel model("llama");  // fp32
  const size_t at = model.config.find("float32");
  ASSERT_NE(at, std::string::npos);
  model.config.replace(at, 7, "float16");
  ASSERT_TRUE(Check(model).ok());
  EXPECT_EQ(spec_.stored_dtype, kernels::DType::kF32);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("stored in f32, config.json says f16")));
}

TEST_F(CheckCheckpointTest, OfSeveralStoredTypesTheOneThatHoldsAll) {
  EditableModel model("qwen3");  // bf16
  model.AddZeros("model.norm.weight", Dtype::kF16, {32});
  ASSERT_TRUE(Check(model).ok());
  EXPECT_EQ(spec_.stored_dtype, kernels::DType::kF32);
}

TEST_F(CheckCheckpointTest, MissingTensor) {
  EditableModel model("llama");
  model.tensors.erase(kQ);
  const absl::Status status = Check(model);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(proto::HasExitCode(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
  EXPECT_THAT(std::string(status.message()), HasSubstr("q_proj.weight [32, 32] is missing"));
}

TEST_F(CheckCheckpointTest, AllFindingsAtOnce) {
  EditableModel model("llama");
  model.tensors.erase(kQ);
  model.AddZeros("model.norm.weight", Dtype::kF32, {31});
  model.AddZeros("model.layers.1.mlp.up_proj.weight", Dtype::kI64, {48, 32});
  const std::string message(Check(model).message());
  EXPECT_THAT(message, HasSubstr("3 findings"));
  EXPECT_THAT(message, HasSubstr(std::string(kQ) + " [32, 32] is missing"));
  EXPECT_THAT(message, HasSubstr("model.safetensors: tensor model.norm.weight is F32 [31], allowed "
                                 "BF16, F16 or F32 [32]"));
  EXPECT_THAT(message,
              HasSubstr("up_proj.weight is I64 [48, 32], allowed BF16, F16 or F32 [48, 32]"));
}

TEST_F(CheckCheckpointTest, TransposedMatrix) {
  EditableModel model("llama");
  model.at("model.layers.0.mlp.up_proj.weight").shape = {32, 48};
  EXPECT_THAT(std::string(Check(model).message()), HasSubstr("is F32 [32, 48], allowed"));
}

TEST_F(CheckCheckpointTest, VectorAsMatrix) {
  EditableModel model("llama");
  model.at("model.norm.weight").shape = {1, 32};
  EXPECT_THAT(std::string(Check(model).message()), HasSubstr("is F32 [1, 32], allowed"));
}

TEST_F(CheckCheckpointTest, EveryFloatTypeIsReadAnd64BitIsNot) {
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF16, Dtype::kF32}) {
    EditableModel model("llama");
    model.AddZeros(kQ, dtype, {32, 32});
    EXPECT_TRUE(Check(model).ok());
  }
  EditableModel model("llama");
  model.AddZeros(kQ, Dtype::kF64, {32, 32});
  EXPECT_THAT(std::string(Check(model).message()), HasSubstr("F64"));
}

TEST_F(CheckCheckpointTest, CodesWithoutStateSayWhatIsMissing) {
  EditableModel model("llama");
  model.AddZeros(kQ, Dtype::kU8, {512, 1});
  EXPECT_THAT(
      std::string(Check(model).message()),
      HasSubstr("or 4 bits with a tensor " + std::string(kQ) + ".quant_state.bitsandbytes__nf4"));
}

TEST_F(CheckCheckpointTest, RotaryFrequenciesAreIgnored) {
  EditableModel model("llama");
  model.AddZeros("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::kF32, {4});
  EXPECT_TRUE(Check(model).ok());
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(CheckCheckpointTest, ExtrasAreOneWarning) {
  EditableModel model("llama");
  for (int i = 0; i < 7; ++i) model.AddZeros("extra." + std::to_string(i), Dtype::kI64, {2});
  EXPECT_TRUE(Check(model).ok());
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("7 tensors are not part of a llama model")));
  EXPECT_THAT(warnings_[0], HasSubstr("extra.0, extra.1"));
  EXPECT_THAT(warnings_[0], Not(HasSubstr("extra.5")));
}

TEST_F(CheckCheckpointTest, TiedHeadThatEqualsTheEmbedding) {
  EditableModel model("llama3_tied");
  model.tensors[kHead] = model.at(kEmbedding);
  EXPECT_TRUE(Check(model).ok());
  EXPECT_TRUE(spec_.tied_embeddings);
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(CheckCheckpointTest, TiedHeadThatEqualsInAnotherType) {
  EditableModel model("llama3_tied");
  const std::string narrow = model.at(kEmbedding).bytes;
  std::string wide(narrow.size() * 2, '\0');
  for (size_t i = 0; i < narrow.size() / 2; ++i) {
    wide[4 * i + 2] = narrow[2 * i];
    wide[4 * i + 3] = narrow[2 * i + 1];
  }
  model.tensors[kHead] = {Dtype::kF32, {96, 32}, wide};
  EXPECT_TRUE(Check(model).ok());
  EXPECT_TRUE(spec_.tied_embeddings);
  wide[4 * 3000] ^= 1;  // beyond bf16
  model.tensors[kHead].bytes = wide;
  EXPECT_TRUE(Check(model).ok());
  EXPECT_FALSE(spec_.tied_embeddings);
}

TEST_F(CheckCheckpointTest, TiedHeadThatDiffersIsUsed) {
  EditableModel model("llama3_tied");
  model.tensors[kHead] = model.at(kEmbedding);
  model.at(kHead).bytes.back() ^= 1;
  EXPECT_TRUE(Check(model).ok());
  EXPECT_FALSE(spec_.tied_embeddings);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("lm_head.weight differs from")));
}

TEST_F(CheckCheckpointTest, TiedHeadOfAnotherShapeIsAFinding) {
  EditableModel model("llama3_tied");
  model.AddZeros(kHead, Dtype::kBF16, {95, 32});
  EXPECT_THAT(std::string(Check(model).message()), HasSubstr("BF16 [95, 32], allowed"));
}

TEST_F(CheckCheckpointTest, UntiedModelWithoutHead) {
  EditableModel model("llama");
  model.tensors.erase(kHead);
  EXPECT_THAT(std::string(Check(model).message()), HasSubstr("tie_word_embeddings: true"));
}

TEST_F(CheckCheckpointTest, AWrongFolderIsNotListedWhole) {
  EditableModel model("llama_bias");
  for (auto& [name, entry] : model.tensors) entry.shape.push_back(1);
  const std::string message(Check(model).message());
  EXPECT_THAT(message, HasSubstr("35 findings"));
  EXPECT_THAT(message, HasSubstr("and 15 more"));
}

TEST_F(CheckCheckpointTest, FourBitEmbeddingIsRefused) {
  EditableModel model("prequantized/nf4_double");
  model.tensors[std::string(kEmbedding) + ".quant_state.bitsandbytes__nf4"] =
      model.at(std::string(kQ) + ".quant_state.bitsandbytes__nf4");
  EXPECT_THAT(
      std::string(Check(model).message()),
      HasSubstr("embed_tokens.weight is stored in 4 bits, which is allowed for the linears"));
}

TEST_F(CheckCheckpointTest, OtherModesNeedUnquantizedWeights) {
  for (const auto mode : {proto::Mode::LORA, proto::Mode::FULL}) {
    const absl::Status status = Check(EditableModel("prequantized/nf4_double"), mode);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("mode " + proto::Mode::Value_Name(mode) +
                                                         " needs 16- or 32-bit weights; 7 are"));
  }
}

TEST_F(CheckCheckpointTest, QuantizationOfTheJobMustBeTheStoredOne) {
  const quant::QuantSpec other[] = {
      {.type = quant::QuantType::kFp4E2M1}, {.block_size = 128}, {.double_quant = false}};
  for (const quant::QuantSpec& quant : other) {
    const absl::Status status =
        Check(EditableModel("prequantized/nf4_double"), proto::Mode::QLORA, quant);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr("1 finding\n"));
    EXPECT_THAT(
        message,
        HasSubstr("7 weights (the first is " + std::string(kQ) +
                  ") are stored with quantization { bnb_4bit_quant_type: NF4 block_size: 64 "
                  "bnb_4bit_use_double_quant: true }, the job asks for " +
                  QuantizationFields(quant)));
  }
}

TEST_F(CheckCheckpointTest, SomeLinearsMayBeUnquantized) {
  EditableModel model("prequantized/nf4_double");
  std::erase_if(model.tensors, [](const auto& t) { return t.first.starts_with(kQ); });
  model.AddZeros(kQ, Dtype::kBF16, {32, 32});
  EXPECT_TRUE(Check(model).ok());
}

TEST_F(CheckCheckpointTest, DamagedPrequantizedWeightIsBadData) {
  EditableModel model("prequantized/nf4_double");
  model.tensors.erase(std::string(kQ) + ".absmax");
  const absl::Status status = Check(model);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(kQ) + ".absmax is missing"));
}

TEST_F(CheckCheckpointTest, AnotherCodeBookIsOneWarning) {
  EditableModel model("prequantized/nf4_double");
  for (auto& [name, entry] : model.tensors) {
    if (name.ends_with(".quant_map")) entry.bytes[0] ^= 1;
  }
  EXPECT_TRUE(Check(model).ok());
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("differs from the code book of nf4")));
  EXPECT_THAT(warnings_[0], HasSubstr("(and 6 tensors like it)"));
}

}  // namespace
}  // namespace qlora::engine
