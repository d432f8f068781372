#include "engine/io/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/io/safetensors.h"
#include "tests/engine/io/golden_tensors.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/support/faulty_env.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tests::TempFolder;

std::string Golden(const std::string& name) {
  auto bytes = Env::Default()->ReadFile(tests::TestsDir() + "/golden/io/" + name, 1 << 20);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.value_or("");
}

std::string Written(const std::vector<TensorData>& tensors) {
  tests::FaultyEnv env;
  EXPECT_TRUE(WriteSafetensors(&env, "out", tensors).ok());
  return env.ReadFile("out", 1 << 20).value_or("nothing");
}

TEST(SafetensorsWriterTest, EqualsTheReferenceWriterByteForByte) {
  const auto tensors = tests::GoldenTensors();
  EXPECT_EQ(Written(tests::AsData(tensors)), Golden("writer.safetensors"));
  EXPECT_EQ(Written({}), Golden("empty.safetensors"));
}

TEST(SafetensorsWriterTest, OrderOfTheInputDoesNotMatter) {
  auto tensors = tests::GoldenTensors();
  std::reverse(tensors.begin(), tensors.end());
  EXPECT_EQ(Written(tests::AsData(tensors)), Golden("writer.safetensors"));
}

TEST(SafetensorsWriterTest, RoundTrip) {
  TempFolder folder;
  const auto tensors = tests::GoldenTensors();
  ASSERT_TRUE(
      WriteSafetensors(Env::Default(), folder.File("t.safetensors"), tests::AsData(tensors)).ok());
  auto file = SafetensorsFile::Open(Env::Default(), folder.File("t.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), tensors.size());
  EXPECT_EQ(file->metadata().at("format"), "pt");
  for (const auto& tensor : tensors) {
    const TensorInfo* info = file->Find(tensor.spec.name);
    ASSERT_NE(info, nullptr) << tensor.spec.name;
    EXPECT_EQ(info->dtype, tensor.spec.dtype);
    EXPECT_EQ(info->shape, tensor.spec.shape);
    const auto bytes = file->bytes(*info);
    EXPECT_EQ(std::string(bytes.begin(), bytes.end()), tensor.bytes) << tensor.spec.name;
  }
  EXPECT_EQ(file->Find("none"), nullptr);
  EXPECT_EQ(file->Get("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(file->IsAligned(*file->Find("u64"), 8));
  for (const TensorInfo& tensor : file->tensors()) {
    EXPECT_EQ(file->IsAligned(tensor, 2), tensor.offset % 2 == 0) << tensor.name;
  }
}

TEST(SafetensorsWriterTest, StreamsInPieces) {
  tests::FaultyEnv env;
  auto writer = SafetensorsWriter::Create(*env.NewWritableFile("s"),
                                          {{"b", Dtype::kU8, {3}}, {"a", Dtype::kF32, {1}}});
  ASSERT_TRUE(writer.ok());
  ASSERT_EQ(writer->order().size(), 2u);
  EXPECT_EQ(writer->order()[0].name, "a");
  const std::vector<uint8_t> bytes = {1, 2, 3, 4, 5, 6, 7};
  const absl::Span<const uint8_t> all(bytes);
  ASSERT_TRUE(writer->Append(all.subspan(0, 5)).ok());
  const auto early = writer->Finish();
  EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(early.message(), HasSubstr("tensor b"));
  ASSERT_TRUE(writer->Append(all.subspan(5)).ok());
  EXPECT_EQ(writer->Append(all.subspan(0, 1)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(writer->Finish().ok());
  auto file = SafetensorsFile::Open(&env, "s");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(static_cast<int64_t>(env.ReadFile("s", 1000)->size()), writer->file_bytes());
  EXPECT_THAT(file->bytes(*file->Find("b")), ElementsAre(5, 6, 7));
}

TEST(SafetensorsWriterTest, RefusesWhatNoReaderTakes) {
  const auto create = [](std::vector<TensorSpec> specs) {
    tests::FaultyEnv env;
    return SafetensorsWriter::Create(*env.NewWritableFile("s"), std::move(specs)).status().code();
  };
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  constexpr int64_t kHuge = int64_t{1} << 40;
  EXPECT_EQ(create({{"a", Dtype::kU8, {1}}, {"a", Dtype::kF32, {1}}}), kBad);
  EXPECT_EQ(create({{"", Dtype::kU8, {1}}}), kBad);
  EXPECT_EQ(create({{"__metadata__", Dtype::kU8, {1}}}), kBad);
  EXPECT_EQ(create({{"\xff", Dtype::kU8, {1}}}), kBad);
  EXPECT_EQ(create({{"a", Dtype::kU8, {-1}}}), kBad);
  EXPECT_EQ(create({{"a", Dtype::kU8, {kHuge, kHuge}}}), kBad);
  EXPECT_EQ(create({{"a", Dtype::kF4, {3}}}), kBad);
  EXPECT_EQ(create({{"a", Dtype::kF4, {4}}}), absl::StatusCode::kOk);
  const std::vector<uint8_t> three(3);
  tests::FaultyEnv env;
  EXPECT_EQ(WriteSafetensors(&env, "out", {{{"a", Dtype::kU8, {4}}, three}}).code(), kBad);
  EXPECT_FALSE(env.Exists("out"));
  EXPECT_TRUE(env.List(".")->empty());
}

}  // namespace
}  // namespace qlora::engine
