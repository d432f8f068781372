#include "engine/io/checkpoint_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "engine/io/safetensors_writer.h"
#include "tests/engine/io/golden_tensors.h"
#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tests::TempFolder;

constexpr char kIndex[] = "model.safetensors.index.json";

void WriteShard(const TempFolder& folder, const std::string& name,
                const std::vector<std::string>& tensors) {
  std::vector<tests::OwnedTensor> owned;
  for (const std::string& tensor : tensors) {
    owned.push_back(tests::Filled({tensor, Dtype::kBF16, {2, 3}}));
  }
  ASSERT_TRUE(WriteSafetensors(Env::Default(), folder.File(name), tests::AsData(owned)).ok());
}

absl::Status OpenWithIndex(const std::string& index) {
  TempFolder folder;
  WriteShard(folder, "s1.safetensors", {"a", "b"});
  EXPECT_TRUE(folder.Write(kIndex, index).ok());
  return ShardedModel::Open(Env::Default(), folder.path()).status();
}

TEST(ShardedModelTest, OneFile) {
  TempFolder folder;
  WriteShard(folder, "model.safetensors", {"b", "a"});
  auto model = ShardedModel::Open(Env::Default(), folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->Names(), ElementsAre("a", "b"));
  EXPECT_EQ(model->total_bytes(), 24);
  EXPECT_TRUE(model->unlisted().empty());
  auto a = model->Get("a");
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(a->info->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a->data()[1], tests::Filled({"a", Dtype::kBF16, {2, 3}}).bytes[1]);
  const auto none = model->Get("c").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(none.message(), HasSubstr(folder.path()));
}

TEST(ShardedModelTest, ShardsByIndexThroughLinks) {
  TempFolder folder;
  WriteShard(folder, "blob", {"a", "x"});
  WriteShard(folder, "s2.safetensors", {"b"});
  ASSERT_EQ(::symlink("blob", folder.File("s1.safetensors").c_str()), 0);
  ASSERT_TRUE(folder
                  .Write(kIndex,
                         R"({"metadata":{"total_size":24},
                             "weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})")
                  .ok());
  auto model = ShardedModel::Open(Env::Default(), folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->Names(), ElementsAre("a", "b"));
  EXPECT_THAT(model->unlisted(), ElementsAre("x (in s1.safetensors)"));
  EXPECT_FALSE(model->Has("x"));
  EXPECT_EQ(model->total_bytes(), 24);
  EXPECT_EQ(model->Get("b")->file->path(), folder.File("s2.safetensors"));
}

TEST(ShardedModelTest, TheIndexSaysWhichOfTwoShardsHoldsATensor) {
  TempFolder folder;
  WriteShard(folder, "s1.safetensors", {"a"});
  WriteShard(folder, "s2.safetensors", {"a", "b"});
  ASSERT_TRUE(
      folder.Write(kIndex, R"({"weight_map":{"a":"s2.safetensors","b":"s2.safetensors"}})").ok());
  auto model = ShardedModel::Open(Env::Default(), folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->Get("a")->file->path(), folder.File("s2.safetensors"));
}

TEST(ShardedModelTest, ALoneFileWinsOverAnIndex) {
  TempFolder folder;
  WriteShard(folder, "model.safetensors", {"lone"});
  ASSERT_TRUE(folder.Write(kIndex, "not even JSON").ok());
  auto model = ShardedModel::Open(Env::Default(), folder.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->Names(), ElementsAre("lone"));
}

TEST(ShardedModelTest, ShardNamesStayInTheFolder) {
  for (const char* name : {"../s1.safetensors", "/etc/passwd", "sub/s1.safetensors", "..", "",
                           "s1\\\\x", "a\\u0000b", "./s1.safetensors"}) {
    const auto status = OpenWithIndex(absl::StrCat(R"({"weight_map":{"a":")", name, "\"}}"));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(status.message(), HasSubstr("plain file names")) << name;
  }
}

TEST(ShardedModelTest, BrokenIndexes) {
  for (const char* index :
       {"", "{", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})",
        R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":"s1.safetensors","a":"s2"}})"}) {
    EXPECT_EQ(OpenWithIndex(index).code(), absl::StatusCode::kInvalidArgument) << index;
  }
}

TEST(ShardedModelTest, NamesEveryMissingShardAndTensor) {
  const auto shards = OpenWithIndex(
      R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","c":"s3.safetensors"}})");
  EXPECT_EQ(shards.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(shards.message(), HasSubstr("s2.safetensors, s3.safetensors"));
  const auto tensors = OpenWithIndex(
      R"({"weight_map":{"a":"s1.safetensors","c":"s1.safetensors","d":"s1.safetensors"}})");
  EXPECT_EQ(tensors.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(tensors.message(), HasSubstr("c (in s1.safetensors), d (in s1.safetensors)"));
}

TEST(ShardedModelTest, FoldersWithoutWeights) {
  TempFolder folder;
  EXPECT_EQ(ShardedModel::Open(Env::Default(), folder.path()).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(folder.Write("pytorch_model.bin", "").ok());
  EXPECT_THAT(ShardedModel::Open(Env::Default(), folder.path()).status().message(),
              HasSubstr("pickle"));
  ASSERT_TRUE(folder.Write("model.safetensors", "short").ok());
  EXPECT_EQ(ShardedModel::Open(Env::Default(), folder.path()).status().code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace qlora::engine
