#include "engine/model/quantize_cache.h"

#include <string>
#include <vector>

#include "engine/io/file_lock.h"
#include "engine/io/manifest.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/loading_fixture.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class QuantizeCacheTest : public ::testing::Test {
 protected:
  QuantizeCache cache() { return {Env::Default(), folder_.File("cache"), "base"}; }
  std::string Path(const quant::QuantSpec& spec = {}) { return QuantizeCachePath(cache(), spec); }

  // Loads a new run; returns its weights. `quantized_` tells how many weights were quantized on the
  // way.
  std::map<std::string, std::string> Load(const quant::QuantSpec& spec = {},
                                          const char* golden = "llama3_tied") {
    const ShardedModel model = OpenGolden(golden);
    TestRun run(model, spec);
    notes_.clear();
    const absl::Status status = LoadWeightsCached(cache(), model, run.execution.get(), {}, &notes_);
    EXPECT_TRUE(status.ok()) << status;
    quantized_ = run.device->runs("quantize");
    return run.Snapshot();
  }
  std::map<std::string, std::string> Uncached(const quant::QuantSpec& spec = {}) {
    const ShardedModel model = OpenGolden("llama3_tied");
    TestRun run(model, spec);
    EXPECT_TRUE(run.Load(model).ok());
    return run.Snapshot();
  }
  void FlipByte(const std::string& path, size_t at) {
    std::string bytes = *Env::Default()->ReadFile(path, 1 << 24);
    bytes[at < bytes.size() ? at : bytes.size() - 1] ^= 0x10;
    ASSERT_TRUE(AtomicWriteFile(Env::Default(), path, bytes).ok());
  }
  // The cache was not used, was named with `reason`, and works again.
  void ExpectRebuilt(const std::string& reason) {
    EXPECT_TRUE(Load() == Uncached());
    EXPECT_EQ(quantized_, 14);
    EXPECT_THAT(notes_, ElementsAre(HasSubstr(reason), HasSubstr("was written to " + Path())));
    EXPECT_THAT(notes_[0], HasSubstr(Path() + " is not used"));
    EXPECT_TRUE(Load() == Uncached());
    EXPECT_EQ(quantized_, 0);
  }

  tests::TempFolder folder_;
  std::vector<std::string> notes_;
  int quantized_ = -1;
};

TEST_F(QuantizeCacheTest, SecondRunLoadsTheSameBytesWithoutQuantizing) {
  for (const auto type : {quant::QuantType::kNf4, quant::QuantType::kFp4E2M1,
                          quant::QuantType::kFp4E3M0, quant::QuantType::kInt4}) {
    for (const bool double_quant : {false, true}) {
      const quant::QuantSpec spec{.type = type, .double_quant = double_quant};
      EXPECT_TRUE(Load(spec) == Uncached(spec));
      EXPECT_EQ(quantized_, 14);
      EXPECT_THAT(notes_, ElementsAre(HasSubstr("was written to " + Path(spec))));
      EXPECT_TRUE(Load(spec) == Uncached(spec));
      EXPECT_EQ(quantized_, 0);
      EXPECT_THAT(notes_, ElementsAre(HasSubstr("was loaded from " + Path(spec))));
    }
  }
  EXPECT_EQ(Env::Default()->List(cache().folder)->size(), 8u);
}

TEST_F(QuantizeCacheTest, KeyDependsOnBaseAndQuantization) {
  std::set<std::string> keys;
  for (const std::string base : {"a", "b"}) {
    for (const auto type : {quant::QuantType::kNf4, quant::QuantType::kInt4}) {
      for (const int block : {64, 128}) {
        for (const bool double_quant : {false, true}) {
          keys.insert(QuantizeCacheKey(
              base, {.type = type, .block_size = block, .double_quant = double_quant}));
        }
      }
    }
  }
  EXPECT_EQ(keys.size(), 16u);
  EXPECT_EQ(BaseName(Path()), QuantizeCacheKey("base", {}).substr(0, 16));
}

TEST_F(QuantizeCacheTest, DamagedWeights) {
  Load();
  FlipByte(JoinPath(Path(), "model.safetensors"), 1 << 20);
  ExpectRebuilt("is damaged between byte");
}

TEST_F(QuantizeCacheTest, DamagedManifest) {
  Load();
  FlipByte(JoinPath(Path(), kManifestFile), 1 << 20);
  ExpectRebuilt("manifest");
}

TEST_F(QuantizeCacheTest, MissingFile) {
  Load();
  ASSERT_TRUE(Env::Default()->RemoveFile(JoinPath(Path(), "model.safetensors")).ok());
  ExpectRebuilt("is missing");
}

TEST_F(QuantizeCacheTest, FolderThatIsNoCache) {
  ASSERT_TRUE(Env::Default()->CreateFolders(Path()).ok());
  ExpectRebuilt("manifest.pb");
}

TEST_F(QuantizeCacheTest, CacheOfAnotherBaseUnderThisName) {
  Load({}, "qwen3");
  const std::string foreign = folder_.File("cache/other");
  ASSERT_TRUE(Env::Default()->Rename(Path(), foreign).ok());
  QuantizeCache other = cache();
  other.base_hash = "another";
  const ShardedModel model = OpenGolden("llama3_tied");
  TestRun run(model, {});
  ASSERT_TRUE(LoadWeightsCached(other, model, run.execution.get(), {}, &notes_).ok());
  ASSERT_TRUE(Env::Default()->Rename(QuantizeCachePath(other, {}), Path()).ok());
  ExpectRebuilt("it was made for base and quantization " + QuantizeCacheKey("another", {}));
}

// A hash that lies: the tensors themselves are checked too.
TEST_F(QuantizeCacheTest, CacheOfAnotherModelUnderThisHash) {
  Load({}, "qwen3");
  ExpectRebuilt("findings");
}

TEST_F(QuantizeCacheTest, FolderThatCannotBeWrittenIsReportedOnly) {
  ASSERT_TRUE(folder_.Write("cache", "a file").ok());
  EXPECT_TRUE(Load() == Uncached());
  ASSERT_FALSE(notes_.empty());
  EXPECT_THAT(notes_.back(), HasSubstr("could not be written to " + Path()));
}

TEST_F(QuantizeCacheTest, LeftoversOfThisBaseGoOthersStay) {
  const std::string name = BaseName(Path());
  for (const std::string& leftover :
       {".tmp-" + name + "-0123456789abcdef", std::string(".tmp-other-1")}) {
    ASSERT_TRUE(Env::Default()->CreateFolders(JoinPath(cache().folder, leftover)).ok());
  }
  Load();
  EXPECT_THAT(*Env::Default()->List(cache().folder),
              ::testing::UnorderedElementsAre(name, ".tmp-other-1"));
}

// Two runs with one base at a time: what the first is writing is not taken from it.
TEST_F(QuantizeCacheTest, WhatAnotherRunIsWritingIsLeftToIt) {
  const std::string name = BaseName(Path());
  const std::string unfinished = JoinPath(cache().folder, ".tmp-" + name + "-0123456789abcdef");
  ASSERT_TRUE(Env::Default()->CreateFolders(unfinished).ok());
  auto lock = FileLock::Take(JoinPath(cache().folder, "." + name + ".lock"), "process 7");
  ASSERT_TRUE(lock.ok()) << lock.status();
  EXPECT_TRUE(Load() == Uncached());
  EXPECT_THAT(notes_, ElementsAre("the 4-bit base is being written to " + Path() +
                                  " by process 7; this run leaves that to it"));
  EXPECT_TRUE(Env::Default()->Exists(unfinished));
  EXPECT_FALSE(Env::Default()->Exists(Path()));
  lock->reset();
  Load();
  EXPECT_THAT(*Env::Default()->List(cache().folder), ElementsAre(name));
}

TEST_F(QuantizeCacheTest, PrequantizedModelNeedsNone) {
  Load({}, "prequantized/nf4_double");
  EXPECT_THAT(notes_, IsEmpty());
  EXPECT_FALSE(Env::Default()->Exists(cache().folder));
}

TEST_F(QuantizeCacheTest, BadWeightsAreAnErrorAndLeaveNoCache) {
  tests::TempFolder folder;
  EditableModel edited("llama3_tied");
  std::string& bytes = edited.at("model.layers.0.mlp.up_proj.weight").bytes;
  bytes[1] = '\x7f', bytes[0] = '\xc0';
  const ShardedModel model = edited.Save(folder);
  TestRun run(model, {});
  const absl::Status status = LoadWeightsCached(cache(), model, run.execution.get(), {}, &notes_);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(Env::Default()->Exists(Path()));
}

}  // namespace
}  // namespace qlora::engine
