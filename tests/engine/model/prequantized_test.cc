#include "engine/model/prequantized.h"

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/io/atomic_file.h"
#include "engine/io/json_file.h"
#include "engine/io/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/reference_quantizer.h"
#include "tests/engine/model/loading_fixture.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kQ[] = "model.layers.0.self_attn.q_proj.weight";
const std::string kState = std::string(kQ) + ".quant_state.bitsandbytes__nf4";
constexpr char kNf4[] = "prequantized/nf4_double";
constexpr char kFp4[] = "prequantized/fp4_plain";
constexpr quant::QuantSpec kFp4Spec{.type = quant::QuantType::kFp4E2M1, .double_quant = false};

WeightRow RowOf(const ModelSpec& spec, const std::string& name) {
  for (const WeightRow& row : WeightRows(spec)) {
    if (row.name == name) return row;
  }
  ADD_FAILURE() << name;
  return {};
}

struct Refusal {
  const char* name;
  std::function<void(EditableModel*)> edit;
  const char* message;
};

void SetState(EditableModel* model, const std::string& text) {
  model->tensors[kState] = {Dtype::kU8, {int64_t(text.size())}, text};
}
Refusal InState(const char* name, const char* from, const char* to, const char* message) {
  return {name, [=](EditableModel* m) { m->Replace(kState, from, to); }, message};
}

const Refusal kRefusals[] = {
    InState("UnknownKey", "{", R"({"ours": 1, )", "keys that bitsandbytes has not"),
    InState("MissingKey", R"("blocksize": 64, )", "", "lacks \"blocksize\""),
    InState("DuplicateKey", "{", R"({"dtype": "float16", )", "dtype"),
    InState("OtherType", R"("nf4")", R"("fp4")", "quant_type is \"fp4\", allowed \"nf4\""),
    InState("OtherShape", "[32, 32]", "[16, 64]", "shape is [16,64], allowed [32,32]"),
    InState("FlatShape", "[32, 32]", "[1024]", "shape is [1024]"),
    InState("OddBlocks", R"("blocksize": 64)", R"("blocksize": 48)",
            "blocksize is 48, allowed a power"),
    InState("SmallBlocks", R"("blocksize": 64)", R"("blocksize": 16)", "blocksize is 16"),
    InState("HugeBlocks", R"("blocksize": 64)", R"("blocksize": 18446744073709551615)",
            "blocksize is 18"),
    InState("BlocksAsText", R"("blocksize": 64)", R"("blocksize": "64")", "blocksize is \"64\""),
    InState("FractionOfBlock", R"("blocksize": 64)", R"("blocksize": 64.0)", "blocksize is 64.0"),
    InState("OtherDtype", "bfloat16", "int8", "dtype is \"int8\", allowed"),
    InState("HalfNested", R"("nested_dtype": "float32", )", "", "all or none"),
    InState("OtherGroups", R"("nested_blocksize": 256)", R"("nested_blocksize": 128)",
            "nested_blocksize is 128, allowed 256"),
    InState("OtherNestedDtype", R"("nested_dtype": "float32")", R"("nested_dtype": "float16")",
            "nested_dtype is \"float16\""),
    {"OffsetBeyondFp32",
     [](EditableModel* m) {
       SetState(m,
                R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 32], )"
                R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1e39})");
     },
     "nested_offset is 1e+39"},
    {"OffsetAsText",
     [](EditableModel* m) {
       SetState(m,
                R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 32], )"
                R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": "0"})");
     },
     "nested_offset is \"0\""},
    {"NotJson", [](EditableModel* m) { SetState(m, "nf4"); }, "quant_state.bitsandbytes__nf4"},
    {"NotAnObject", [](EditableModel* m) { SetState(m, "[1]"); }, "is no JSON object"},
    {"StateOfAnotherType", [](EditableModel* m) { m->AddZeros(kState, Dtype::kF32, {10}); },
     "F32 [10], allowed U8"},
    {"LongState", [](EditableModel* m) { m->AddZeros(kState, Dtype::kU8, {4097}); }, "U8 [4097]"},
    {"TwoStates",
     [](EditableModel* m) {
       m->tensors[std::string(kQ) + ".quant_state.bitsandbytes__fp4"] = m->at(kState);
     },
     "more than one quant_state"},
    {"CodesMissing", [](EditableModel* m) { m->tensors.erase(kQ); }, "its codes, is missing"},
    {"CodesShort",
     [](EditableModel* m) {
       m->AddZeros(kQ, Dtype::kU8, {511, 1});
     },
     "its codes are U8 [511, 1], allowed U8 [512, 1]"},
    {"CodesAsRow",
     [](EditableModel* m) {
       m->AddZeros(kQ, Dtype::kU8, {1, 512});
     },
     "U8 [1, 512]"},
    {"CodesSigned",
     [](EditableModel* m) {
       m->AddZeros(kQ, Dtype::kI8, {512, 1});
     },
     "I8 [512, 1]"},
    {"ScalesOfAnotherType",
     [](EditableModel* m) { m->AddZeros(std::string(kQ) + ".absmax", Dtype::kF32, {16}); },
     "absmax is F32 [16], allowed U8 [16]"},
    {"ScalesShort",
     [](EditableModel* m) { m->AddZeros(std::string(kQ) + ".absmax", Dtype::kU8, {15}); },
     "absmax is U8 [15], allowed U8 [16]"},
    {"NestedMissing",
     [](EditableModel* m) { m->tensors.erase(std::string(kQ) + ".nested_absmax"); },
     "nested_absmax is missing"},
    {"MapMissing",
     [](EditableModel* m) { m->tensors.erase(std::string(kQ) + ".nested_quant_map"); },
     "nested_quant_map is missing"},
    {"CodeBookMissing", [](EditableModel* m) { m->tensors.erase(std::string(kQ) + ".quant_map"); },
     "quant_map is missing"},
    {"MapDiffersByOneBit",
     [](EditableModel* m) { m->at(std::string(kQ) + ".nested_quant_map").bytes[600] ^= 1; },
     "nested_quant_map are not bitsandbytes' signed dynamic map"},
    {"PlainStateWithNestedTensors",
     [](EditableModel* m) {
       SetState(
           m, R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 32]})");
       m->AddZeros(std::string(kQ) + ".absmax", Dtype::kF32, {16});
     },
     "nested_absmax contradicts"},
};

class PrequantizedRefusal : public ::testing::TestWithParam<Refusal> {};

TEST_P(PrequantizedRefusal, IsNamed) {
  tests::TempFolder folder;
  EditableModel edited(kNf4);
  GetParam().edit(&edited);
  const ShardedModel model = edited.Save(folder);
  std::vector<std::string> warnings;
  const WeightRow row = RowOf(SpecOf(folder.path()), kQ);
  ASSERT_TRUE(IsPrequantized(model, row));
  const auto weight = ReadPrequantized(model, row, &warnings);
  EXPECT_EQ(weight.status().code(), absl::StatusCode::kDataLoss);
  const std::string message(weight.status().message());
  EXPECT_THAT(message, HasSubstr(folder.File("model.safetensors")));
  EXPECT_THAT(message, HasSubstr(kQ));
  EXPECT_THAT(message, HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(All, PrequantizedRefusal, ::testing::ValuesIn(kRefusals),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ReadPrequantized, GoldenCheckpoints) {
  std::vector<std::string> warnings;
  const ShardedModel nf4 = OpenGolden(kNf4), fp4 = OpenGolden(kFp4);
  int seen = 0;
  for (const WeightRow& row : WeightRows(SpecOf(nf4.folder()))) {
    EXPECT_EQ(IsPrequantized(nf4, row), row.quantizable) << row.name;
    if (!row.quantizable) continue;
    const auto a = ReadPrequantized(nf4, row, &warnings), b = ReadPrequantized(fp4, row, &warnings);
    ASSERT_TRUE(a.ok()) << a.status();
    ASSERT_TRUE(b.ok()) << b.status();
    EXPECT_TRUE(a->spec == quant::QuantSpec{});
    EXPECT_TRUE(b->spec == kFp4Spec);
    EXPECT_EQ(a->original_dtype, Dtype::kBF16);
    EXPECT_GT(a->offset, 0.0f);
    ++seen;
  }
  EXPECT_EQ(seen, 7);
  EXPECT_THAT(warnings, IsEmpty());
}

TEST(ReadPrequantized, OneWeightHasAllItsFaults) {
  tests::TempFolder folder;
  EditableModel edited(kNf4);
  edited.tensors.erase(std::string(kQ) + ".absmax");
  edited.tensors.erase(std::string(kQ) + ".quant_map");
  const ShardedModel model = edited.Save(folder);
  std::vector<std::string> warnings;
  const auto weight = ReadPrequantized(model, RowOf(SpecOf(folder.path()), kQ), &warnings);
  EXPECT_THAT(std::string(weight.status().message()), HasSubstr(".absmax is missing; tensor"));
  EXPECT_THAT(std::string(weight.status().message()), HasSubstr(".quant_map is missing"));
}

TEST(CheckPrequantized, SaysWhichFieldsWouldAgree) {
  const ShardedModel model = OpenGolden(kFp4);
  std::vector<std::string> warnings;
  const WeightRow row = RowOf(SpecOf(model.folder()), kQ);
  EXPECT_TRUE(CheckPrequantized(model, row, kFp4Spec, &warnings).ok());
  const absl::Status status = CheckPrequantized(model, row, {}, &warnings);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      HasSubstr("bnb_4bit_quant_type: FP4 block_size: 64 bnb_4bit_use_double_quant: false }, "
                "the job asks for quantization { bnb_4bit_quant_type: NF4"));
}

// bitsandbytes' own dequantized weights, rounded to bf16, zeros positive.
void ExpectGoldenWeights(TestRun* run, const std::string& golden) {
  const auto expected = ReadJsonFile(Env::Default(), GoldenModelPath(golden + "/dequantized.json"));
  ASSERT_TRUE(expected.ok()) << expected.status();
  size_t compared = 0;
  for (const WeightSlot& slot : run->plan.run.storage.weights) {
    if (!slot.quantized.codes) continue;
    const std::string codes = run->Bytes(slot.quantized.codes);
    const std::string absmax = run->Bytes(slot.quantized.absmax);
    const std::string nested = run->Bytes(slot.quantized.nested_absmax);
    const std::string offset = run->Bytes(slot.quantized.offset);
    std::vector<float> w(slot.row.Count());
    quant::DequantizeReference({.spec = slot.base.quantized.spec,
                                .codes = reinterpret_cast<const uint8_t*>(codes.data()),
                                .absmax_f32 = reinterpret_cast<const float*>(absmax.data()),
                                .absmax_u8 = reinterpret_cast<const uint8_t*>(absmax.data()),
                                .nested_absmax = reinterpret_cast<const float*>(nested.data()),
                                .nested_offset = reinterpret_cast<const float*>(offset.data())},
                               slot.row.Count(), w.data());
    std::string rounded;
    for (const float value : w) {
      const uint16_t bits = quant::Bf16FromF32(value + 0.0f);
      rounded.append(reinterpret_cast<const char*>(&bits), 2);
    }
    EXPECT_EQ(Sha256Hex(rounded), (*expected)[slot.row.name].get<std::string>()) << slot.row.name;
    ++compared;
  }
  EXPECT_EQ(compared, expected->size());
}

TEST(LoadPrequantized, GoldenWeightsAreThoseOfBitsandbytes) {
  for (const auto& [golden, spec] :
       {std::pair(kNf4, quant::QuantSpec{}), std::pair(kFp4, kFp4Spec)}) {
    const ShardedModel model = OpenGolden(golden);
    TestRun run(model, spec);
    const absl::Status status = run.Load(model);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(run.device->runs("quantize"), 0);
    EXPECT_EQ(run.device->runs("pack"), 7);
    ExpectGoldenWeights(&run, golden);
  }
}

TEST(LoadPrequantized, PassesThroughTheDevicesMemoryAndPacking) {
  for (const auto& [golden, spec] :
       {std::pair(kNf4, quant::QuantSpec{}), std::pair(kFp4, kFp4Spec)}) {
    const ShardedModel model = OpenGolden(golden);
    TestRun host(model, spec);
    TestRun other(model, spec, std::make_unique<tests::ReferenceDevice>(/*is_host=*/false, 0x5a));
    ASSERT_TRUE(host.Load(model).ok());
    const absl::Status status = other.Load(model);
    ASSERT_TRUE(status.ok()) << status;
    for (const WeightSlot& slot : host.plan.run.storage.weights) {
      std::string packed = other.Bytes(slot.quantized.codes);
      for (char& c : packed) c ^= 0x5a;
      EXPECT_EQ(packed, host.Bytes(slot.quantized.codes)) << slot.row.name;
      EXPECT_EQ(other.Bytes(slot.quantized.absmax), host.Bytes(slot.quantized.absmax));
      EXPECT_EQ(other.Bytes(slot.quantized.offset), host.Bytes(slot.quantized.offset));
    }
  }
}

TEST(LoadPrequantized, CodesStoredAsWiderElements) {
  const ShardedModel golden = OpenGolden(kNf4);
  TestRun expected(golden, {});
  ASSERT_TRUE(expected.Load(golden).ok());
  for (const auto& [dtype, size] :
       {std::pair(Dtype::kBF16, 2), {Dtype::kF16, 2}, {Dtype::kF32, 4}}) {
    tests::TempFolder folder;
    EditableModel edited(kNf4);
    edited.at(kQ).dtype = dtype;
    edited.at(kQ).shape = {512 / size, 1};
    const ShardedModel model = edited.Save(folder);
    TestRun run(model, {});
    const absl::Status status = run.Load(model);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(run.Snapshot(), expected.Snapshot());
  }
}

void SetFloat(EditableModel* model, const std::string& name, int element, float value) {
  std::memcpy(model->at(name).bytes.data() + 4 * element, &value, 4);
}

TEST(LoadPrequantized, ScalesMustBeFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Case {
    const char* golden;
    quant::QuantSpec spec;
    const char* part;
    int element;
    float value;
  };
  for (const Case& c : {Case{kFp4, kFp4Spec, ".absmax", 11, std::nanf("")},
                        Case{kFp4, kFp4Spec, ".absmax", 0, -kInfinity},
                        Case{kNf4, {}, ".nested_absmax", 0, kInfinity}}) {
    tests::TempFolder folder;
    EditableModel edited(c.golden);
    SetFloat(&edited, std::string(kQ) + c.part, c.element, c.value);
    const ShardedModel model = edited.Save(folder);
    TestRun run(model, c.spec);
    const absl::Status status = run.Load(model);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(kQ) + c.part));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(" at element " + std::to_string(c.element)));
  }
}

TEST(LoadPrequantized, ScalesMustStayFiniteWhenDecoded) {
  tests::TempFolder folder;
  EditableModel edited(kNf4);
  SetState(&edited,
           R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 32], )"
           R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 3e38})");
  SetFloat(&edited, std::string(kQ) + ".nested_absmax", 0, 1e38f);
  const ShardedModel model = edited.Save(folder);
  TestRun run(model, {});
  EXPECT_EQ(run.Load(model).code(), absl::StatusCode::kDataLoss);
}

TEST(LoadPrequantized, OtherQuantizationIsRefusedBeforeAnythingIsPacked) {
  const ShardedModel model = OpenGolden(kNf4);
  TestRun run(model, {.block_size = 128});
  EXPECT_EQ(run.Load(model).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run.device->runs("pack"), 0);
}

TEST(LoadWeights, NanIsNamedByTensorAndElement) {
  struct Case {
    const char* name;
    int element;
    uint16_t bits;
  };
  for (const Case& c :
       {Case{"model.layers.1.mlp.up_proj.weight", 77, 0x7fc0},
        Case{"model.layers.0.self_attn.o_proj.weight", 1023, 0xff80},
        Case{"model.embed_tokens.weight", 5, 0x7f80}, Case{"model.norm.weight", 31, 0x7fc1}}) {
    tests::TempFolder folder;
    EditableModel edited("llama3_tied");
    std::memcpy(edited.at(c.name).bytes.data() + 2 * c.element, &c.bits, 2);
    const ShardedModel model = edited.Save(folder);
    TestRun run(model, {});
    const absl::Status status = run.Load(model);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("tensor ") + c.name));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("element " + std::to_string(c.element) + " "));
  }
}

// Written by Transformers, read, unpacked from another packing, written again: the same file.
TEST(WritePrequantized, GivesBackTheFileOfTransformers) {
  // NF4 only: the CPU build writes FP4's second zero as +0, ours is -0 as on CUDA.
  for (const auto& [golden, spec] : {std::pair(kNf4, quant::QuantSpec{})}) {
    const ShardedModel model = OpenGolden(golden);
    TestRun run(model, spec, std::make_unique<tests::ReferenceDevice>(/*is_host=*/false, 0x33));
    ASSERT_TRUE(run.Load(model).ok());
    tests::TempFolder folder;
    const std::string out = folder.File("a/b");
    const absl::Status status = WritePrequantized(Env::Default(), out, model, run.execution.get());
    ASSERT_TRUE(status.ok()) << status;
    const auto written = Env::Default()->ReadFile(JoinPath(out, "model.safetensors"), 1 << 20);
    EXPECT_TRUE(*written == GoldenModelText(std::string(golden) + "/model.safetensors")) << golden;
    EXPECT_EQ(*ReadJsonFile(Env::Default(), JoinPath(out, "config.json")),
              *ReadJsonFile(Env::Default(), GoldenModelPath(std::string(golden) + "/config.json")));
  }
}

TEST(WritePrequantized, RoundTripOfWhatWasQuantized) {
  for (const std::string golden : {"llama", "llama3_tied", "llama_bias", "qwen3"}) {
    for (const quant::QuantSpec& spec :
         {quant::QuantSpec{}, quant::QuantSpec{.block_size = 256, .double_quant = false},
          quant::QuantSpec{.type = quant::QuantType::kFp4E2M1, .block_size = 32}}) {
      const ShardedModel model = OpenGolden(golden);
      TestRun first(model, spec);
      ASSERT_TRUE(first.Load(model).ok());
      tests::TempFolder folder;
      const absl::Status status =
          WritePrequantized(Env::Default(), folder.path(), model, first.execution.get());
      ASSERT_TRUE(status.ok()) << status;
      const auto written = ShardedModel::Open(Env::Default(), folder.path());
      ASSERT_TRUE(written.ok()) << written.status();
      ModelSpec read = SpecOf(folder.path());
      EXPECT_TRUE(read.prequantized);
      std::vector<std::string> warnings;
      EXPECT_TRUE(CheckCheckpoint(*written, proto::Mode::QLORA, spec, &read, &warnings).ok());
      EXPECT_THAT(warnings, IsEmpty());
      TestRun second(*written, spec);
      ASSERT_TRUE(second.Load(*written).ok());
      EXPECT_EQ(second.device->runs("quantize"), 0);
      EXPECT_TRUE(first.Snapshot() == second.Snapshot()) << golden;
    }
  }
}

TEST(WritePrequantized, StateNamesTheTypeBeforeQuantization) {
  const ShardedModel model = OpenGolden("llama");
  TestRun run(model, {});
  ASSERT_TRUE(run.Load(model).ok());
  tests::TempFolder folder;
  ASSERT_TRUE(WritePrequantized(Env::Default(), folder.path(), model, run.execution.get()).ok());
  const auto written = ShardedModel::Open(Env::Default(), folder.path());
  const auto state = written->Get(kState)->bytes();
  const std::string text(state.begin(), state.end());
  EXPECT_THAT(text,
              HasSubstr(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": )"
                        R"([32, 32], "nested_blocksize": 256, "nested_dtype": "float32", )"
                        R"("nested_offset": 0.)"));
}

TEST(WritePrequantized, TypesThatBitsandbytesHasNotAreRefused) {
  for (const auto type : {quant::QuantType::kFp4E3M0, quant::QuantType::kInt4}) {
    const ShardedModel model = OpenGolden("llama");
    TestRun run(model, {.type = type});
    ASSERT_TRUE(run.Load(model).ok());
    tests::TempFolder folder;
    const absl::Status status =
        WritePrequantized(Env::Default(), folder.File("out"), model, run.execution.get());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(type == quant::QuantType::kInt4 ? "found INT4" : "found FP4_E3M0"));
    EXPECT_FALSE(Env::Default()->Exists(folder.File("out")));
  }
}

TEST(WritePrequantized, CopiesGenerationSettingsAndTokenizer) {
  tests::TempFolder from, to;
  EditableModel edited("llama");
  edited.AddZeros("extra", Dtype::kF32, {3});
  const ShardedModel model = edited.Save(from);
  ASSERT_TRUE(from.Write("generation_config.json", R"({"eos_token_id": [2, 3]})").ok());
  ASSERT_TRUE(from.Write("tokenizer.json", "{}").ok());
  TestRun run(model, {});
  ASSERT_TRUE(run.Load(model).ok());
  ASSERT_TRUE(WritePrequantized(Env::Default(), to.path(), model, run.execution.get()).ok());
  EXPECT_THAT(*Env::Default()->List(to.path()),
              ElementsAre("config.json", "generation_config.json", "manifest.pb",
                          "model.safetensors", "tokenizer.json"));
  EXPECT_THAT(SpecOf(to.path()).eos_ids, ElementsAre(2, 3));
  EXPECT_FALSE(ShardedModel::Open(Env::Default(), to.path())->Has("extra"));
}

// Whenever the process dies: never the new weights under the old config.
TEST(WritePrequantized, AKillLeavesTheOldModelOrTheNew) {
  const ShardedModel model = OpenGolden("llama");
  TestRun run(model, {});
  ASSERT_TRUE(run.Load(model).ok());
  const auto put = [](Env* env, const std::string& path, const std::string& text) {
    ASSERT_TRUE(env->CreateFolders(ParentPath(path)).ok());
    ASSERT_TRUE(AtomicWriteFile(env, path, text).ok());
  };
  const auto disk = [&] {
    auto env = std::make_unique<tests::FaultyEnv>();
    put(env.get(), model.folder() + "/config.json", GoldenModelText("llama/config.json"));
    put(env.get(), "out/quantized/model.safetensors", "old weights");
    put(env.get(), "out/quantized/config.json", "old config");
    return env;
  };
  const auto write = [&](Env* env) {
    return WritePrequantized(env, "out/quantized", model, run.execution.get());
  };
  const auto contents = [](Env* env) {
    std::string text;
    for (const char* name : {"model.safetensors", "config.json"}) {
      text += env->ReadFile(JoinPath("out/quantized", name), 1 << 20).value_or("(none)");
    }
    return text;
  };
  const auto undisturbed = disk();
  const std::string before = contents(undisturbed.get());
  const int64_t begin = undisturbed->operations();
  ASSERT_TRUE(write(undisturbed.get()).ok());
  const int64_t operations = undisturbed->operations() - begin;
  const std::string after = contents(undisturbed.get());
  int64_t old = 0;
  for (int64_t kill = 0; kill < operations; ++kill) {
    const auto env = disk();
    env->DieAt(env->operations() + kill);
    (void)write(env.get());
    const auto next = env->Restart(tests::FaultyEnv::Loss::kNothing, 0);
    ASSERT_TRUE(CleanTemporariesOf(next.get(), "out", "quantized").ok());
    const std::string found = contents(next.get());
    EXPECT_TRUE(found == before || found == after) << "killed at operation " << kill;
    if (found == before) ++old;
    EXPECT_THAT(*next->List("out"), ElementsAre("quantized"));
  }
  EXPECT_GT(old, 0);
  EXPECT_LT(old, operations);
}

}  // namespace
}  // namespace qlora::engine
