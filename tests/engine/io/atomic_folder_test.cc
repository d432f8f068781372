#include "engine/io/atomic_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"
#include "engine/io/crc32c.h"
#include "engine/io/manifest.h"
#include "engine/io/sha256.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using tests::FaultyEnv;

// Bytes over several chunks, different for every step.
std::string Payload(int64_t step) {
  std::string bytes(2 * kManifestChunk + 100, static_cast<char>('a' + step % 26));
  for (size_t i = 0; i < bytes.size(); i += 1000) bytes[i] = static_cast<char>(i / 1000);
  return bytes;
}

absl::Status Save(Env* env, int64_t step, const std::string& payload) {
  auto commit = FolderCommit::Begin(env, "out", CheckpointName(step));
  if (!commit.ok()) return commit.status();
  if (auto status = (*commit)->AddFile("weights", payload); !status.ok()) return status;
  if (auto status = (*commit)->AddFile("a_state", absl::StrCat("step ", step)); !status.ok()) {
    return status;
  }
  return (*commit)->Commit({step, 2, "hash"});
}

void Overwrite(FaultyEnv* env, const std::string& path, const std::string& contents) {
  auto file = env->NewWritableFile(path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Append(contents).ok());
}

class AtomicFolderTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(env_.CreateFolders("out").ok()); }
  std::string Read(const std::string& path) { return *env_.ReadFile(path, 1 << 30); }

  FaultyEnv env_;
};

TEST_F(AtomicFolderTest, CommitsAndVerifies) {
  ASSERT_TRUE(Save(&env_, 7, Payload(7)).ok());
  auto manifest = VerifyFolder(&env_, "out/checkpoint-7");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->step(), 7);
  EXPECT_EQ(manifest->world(), 2);
  EXPECT_EQ(manifest->job_hash(), "hash");
  ASSERT_EQ(manifest->files_size(), 2);
  EXPECT_EQ(manifest->files(0).name(), "a_state");
  EXPECT_EQ(manifest->files(1).size(), Payload(7).size());
  EXPECT_EQ(manifest->files(1).chunk_crc32c_size(), 3);
  Sha256 hash;
  hash.Update(Payload(7));
  EXPECT_EQ(manifest->files(1).sha256(), hash.Finish());
  EXPECT_THAT(*env_.List("out"), ElementsAre("checkpoint-7"));
}

TEST_F(AtomicFolderTest, PiecesOfAFileSumUpTheSame) {
  auto commit = FolderCommit::Begin(&env_, "out", "checkpoint-1");
  auto file = (*commit)->NewFile("weights");
  const std::string payload = Payload(1);
  for (size_t i = 0; i < payload.size(); i += 333'333) {
    ASSERT_TRUE((*file)->Append(absl::string_view(payload).substr(i, 333'333)).ok());
  }
  ASSERT_TRUE((*file)->Close().ok());
  ASSERT_TRUE((*commit)->AddFile("empty", "").ok());
  ASSERT_TRUE((*commit)->Commit({1, 1, ""}).ok());
  EXPECT_TRUE(VerifyFolder(&env_, "out/checkpoint-1").ok());
}

TEST_F(AtomicFolderTest, WhatIsNotCommittedLeavesNothing) {
  {
    auto commit = FolderCommit::Begin(&env_, "out", "checkpoint-1");
    ASSERT_TRUE((*commit)->AddFile("weights", "x").ok());
  }
  EXPECT_TRUE(env_.List("out")->empty());
}

TEST_F(AtomicFolderTest, MisuseIsRefused) {
  EXPECT_FALSE(FolderCommit::Begin(&env_, "out", "../x").ok());
  EXPECT_FALSE(FolderCommit::Begin(&env_, "out", ".tmp-x").ok());
  EXPECT_FALSE(FolderCommit::Begin(&env_, "nowhere", "x").ok());
  auto commit = FolderCommit::Begin(&env_, "out", "checkpoint-1");
  EXPECT_FALSE((*commit)->NewFile("../x").ok());
  EXPECT_FALSE((*commit)->NewFile(kManifestFile).ok());
  ASSERT_TRUE((*commit)->AddFile("a", "1").ok());
  EXPECT_EQ((*commit)->AddFile("a", "2").code(), absl::StatusCode::kAlreadyExists);
  {
    auto open = (*commit)->NewFile("b");
    EXPECT_EQ((*commit)->Commit({1, 1, ""}).code(), absl::StatusCode::kFailedPrecondition);
    ASSERT_TRUE((*open)->Close().ok());
  }
  ASSERT_TRUE((*commit)->Commit({1, 1, ""}).ok());
  EXPECT_FALSE((*commit)->Commit({1, 1, ""}).ok());
  EXPECT_FALSE((*commit)->NewFile("c").ok());
}

TEST_F(AtomicFolderTest, AFileThatFailedKeepsTheFolderFromAppearing) {
  auto commit = FolderCommit::Begin(&env_, "out", "checkpoint-1");
  auto file = (*commit)->NewFile("a");
  env_.FailAt(env_.operations(), EIO, false);
  EXPECT_FALSE((*file)->Append(absl::string_view("x")).ok());
  EXPECT_TRUE((*file)->Close().ok());  // a caller that overlooks the error
  EXPECT_EQ((*commit)->Commit({1, 1, ""}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(AtomicFolderTest, DamageIsNamedByItsPlace) {
  ASSERT_TRUE(Save(&env_, 1, Payload(1)).ok());
  const std::string path = "out/checkpoint-1/weights";
  std::string damaged = Payload(1);
  damaged[kManifestChunk + 5] ^= 1;
  Overwrite(&env_, path, damaged);
  Overwrite(&env_, "out/checkpoint-1/a_state", "step 1 and more");
  const auto status = VerifyFolder(&env_, "out/checkpoint-1").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(),
              HasSubstr(absl::StrCat(path, " is damaged between byte 1048576 and byte 2097152")));
  EXPECT_THAT(status.message(), HasSubstr("a_state has 15 bytes, the manifest says 6"));
  ASSERT_TRUE(env_.RemoveFile(path).ok());
  EXPECT_THAT(VerifyFolder(&env_, "out/checkpoint-1").status().message(),
              HasSubstr("weights is missing"));
}

// Whoever changes a file on purpose can make the checksums fit.
TEST_F(AtomicFolderTest, HashesNoticeWhatChecksumsCannot) {
  ASSERT_TRUE(Save(&env_, 1, "payload").ok());
  const std::string folder = "out/checkpoint-1";
  auto manifest = ReadManifest(&env_, folder);
  ASSERT_TRUE(manifest.ok());
  proto::FolderManifest::File* file = manifest->mutable_files(1);
  file->set_crc32c(Crc32c("PAYLOAD"));
  file->set_chunk_crc32c(0, Crc32c("PAYLOAD"));
  Overwrite(&env_, folder + "/weights", "PAYLOAD");
  Overwrite(&env_, folder + "/manifest.pb", EncodeManifest(*manifest));
  EXPECT_TRUE(VerifyFolder(&env_, folder).ok());
  const auto status = VerifyFolder(&env_, folder, VerifyDepth::kChecksumsAndHashes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("weights: its SHA-256 is not the manifest's"));
  // A manifest without hashes is as good as its checksums.
  file->clear_sha256();
  Overwrite(&env_, folder + "/manifest.pb", EncodeManifest(*manifest));
  EXPECT_TRUE(VerifyFolder(&env_, folder, VerifyDepth::kChecksumsAndHashes).ok());
}

TEST_F(AtomicFolderTest, EveryFlippedBitAndEveryCutOfTheManifestIsFound) {
  ASSERT_TRUE(Save(&env_, 1, "payload").ok());
  const std::string good = Read("out/checkpoint-1/manifest.pb");
  ASSERT_TRUE(DecodeManifest(good, "m").ok());
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    ASSERT_EQ(DecodeManifest(bad, "m").status().code(), absl::StatusCode::kDataLoss) << bit;
  }
  for (size_t n = 0; n < good.size(); ++n) {
    ASSERT_EQ(DecodeManifest(good.substr(0, n), "m").status().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_FALSE(DecodeManifest(good + '\0', "m").ok());
}

TEST_F(AtomicFolderTest, EveryFlippedBitOfASmallFileIsFound) {
  ASSERT_TRUE(Save(&env_, 1, "a payload of some bytes").ok());
  for (const char* name : {"weights", "a_state"}) {
    const std::string path = absl::StrCat("out/checkpoint-1/", name);
    const std::string good = Read(path);
    for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
      Overwrite(&env_, path, bad);
      ASSERT_EQ(VerifyFolder(&env_, "out/checkpoint-1").status().code(),
                absl::StatusCode::kDataLoss);
    }
    for (size_t n = 0; n < good.size(); ++n) {
      Overwrite(&env_, path, good.substr(0, n));
      ASSERT_FALSE(VerifyFolder(&env_, "out/checkpoint-1").ok());
    }
    Overwrite(&env_, path, good);
  }
  EXPECT_TRUE(VerifyFolder(&env_, "out/checkpoint-1").ok());
}

TEST_F(AtomicFolderTest, ANewerVersionIsToldFromDamage) {
  proto::FolderManifest manifest;
  manifest.set_chunk_bytes(kManifestChunk);
  const auto newer = DecodeManifest(EncodeManifest(manifest, kManifestVersion + 1), "m").status();
  EXPECT_EQ(newer.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(newer.message(), HasSubstr("newer version"));
  EXPECT_FALSE(DecodeManifest(EncodeManifest(manifest, 0), "m").ok());
}

TEST_F(AtomicFolderTest, AManifestThatPointsElsewhereIsRefused) {
  const auto decode = [](std::vector<std::string> names, uint64_t chunk, int64_t step,
                         uint64_t size) {
    proto::FolderManifest manifest;
    manifest.set_chunk_bytes(chunk);
    manifest.set_step(step);
    for (const std::string& name : names) {
      auto* file = manifest.add_files();
      file->set_name(name);
      file->set_size(size);
    }
    return DecodeManifest(EncodeManifest(manifest), "m").status().code();
  };
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  EXPECT_EQ(decode({"a", "b"}, 1 << 20, 0, 0), absl::StatusCode::kOk);
  EXPECT_EQ(decode({"../a"}, 1 << 20, 0, 0), kLoss);
  EXPECT_EQ(decode({"/etc/passwd"}, 1 << 20, 0, 0), kLoss);
  EXPECT_EQ(decode({"manifest.pb"}, 1 << 20, 0, 0), kLoss);
  EXPECT_EQ(decode({""}, 1 << 20, 0, 0), kLoss);
  EXPECT_EQ(decode({"a", "a"}, 1 << 20, 0, 0), kLoss);
  EXPECT_EQ(decode({"b", "a"}, 1 << 20, 0, 0), kLoss);
  EXPECT_EQ(decode({"a"}, 0, 0, 0), kLoss);
  EXPECT_EQ(decode({"a"}, uint64_t{1} << 40, 0, 0), kLoss);
  EXPECT_EQ(decode({"a"}, 1 << 20, -1, 0), kLoss);
  EXPECT_EQ(decode({"a"}, 1 << 20, 0, ~uint64_t{0}), kLoss);
}

TEST(CheckpointNameTest, IsOneToOne) {
  EXPECT_EQ(CheckpointName(30), "checkpoint-30");
  EXPECT_EQ(CheckpointStep("checkpoint-30"), 30);
  EXPECT_EQ(CheckpointStep("checkpoint-0"), 0);
  for (const char* name : {"checkpoint-", "checkpoint-030", "checkpoint-+3", "checkpoint--3",
                           "checkpoint- 3", "checkpoint-3 ", "checkpoint-3x", "xcheckpoint-3",
                           "checkpoint-99999999999999999999", ".tmp-checkpoint-3-0"}) {
    EXPECT_EQ(CheckpointStep(name), std::nullopt) << name;
  }
}

TEST_F(AtomicFolderTest, TheNewestThatVerifiesIsTaken) {
  for (int64_t step : {9, 10, 100, 110}) ASSERT_TRUE(Save(&env_, step, "data").ok());
  ASSERT_TRUE(env_.CreateFolder("out/checkpoint-500").ok());  // no manifest
  Overwrite(&env_, "out/checkpoint-900", "a file");
  Overwrite(&env_, "out/checkpoint-110/weights", "dxta");
  ASSERT_TRUE(env_.Rename("out/checkpoint-9", "out/checkpoint-120").ok());
  auto newest = FindNewestValid(&env_, "out");
  ASSERT_TRUE(newest.ok()) << newest.status();
  EXPECT_EQ(newest->path, "out/checkpoint-100");
  EXPECT_EQ(newest->manifest.step(), 100);
  ASSERT_THAT(newest->refused, SizeIs(3));
  EXPECT_EQ(newest->refused[0].first, "out/checkpoint-500");
  EXPECT_EQ(newest->refused[0].second.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(newest->refused[1].second.message(), HasSubstr("its manifest is of step 9"));
  EXPECT_THAT(newest->refused[2].second.message(), HasSubstr("damaged"));
  EXPECT_EQ(FindNewestValid(&env_, "nowhere")->path, std::nullopt);
}

TEST_F(AtomicFolderTest, AFailingDiskIsNoDamagedCheckpoint) {
  ASSERT_TRUE(Save(&env_, 1, "data").ok());
  ASSERT_TRUE(Save(&env_, 2, "data").ok());
  const int64_t start = env_.operations();
  ASSERT_TRUE(FindNewestValid(&env_, "out").ok());
  const int64_t count = env_.operations() - start;
  for (int64_t k = 0; k < count; ++k) {
    env_.FailAt(env_.operations() + k, EIO, false);
    auto newest = FindNewestValid(&env_, "out");
    ASSERT_FALSE(newest.ok()) << k;
    EXPECT_TRUE(IsIoError(newest.status()));
  }
}

TEST_F(AtomicFolderTest, OldOnesGoButNeverTheBestNorThoseBeyond) {
  for (int64_t step = 1; step <= 6; ++step) ASSERT_TRUE(Save(&env_, step, "d").ok());
  auto removed = RemoveOldest(&env_, "out", 5, 2, "checkpoint-1");
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_THAT(*removed, ElementsAre("checkpoint-2", "checkpoint-3"));
  EXPECT_THAT(*env_.List("out"),
              ElementsAre("checkpoint-1", "checkpoint-4", "checkpoint-5", "checkpoint-6"));
  ASSERT_TRUE(RemoveOldest(&env_, "out", 5, 0, "").ok());
  EXPECT_THAT(*env_.List("out"), ElementsAre("checkpoint-5", "checkpoint-6"));
}

TEST_F(AtomicFolderTest, AStepDoneAgainReplaces) {
  ASSERT_TRUE(Save(&env_, 1, "first").ok());
  ASSERT_TRUE(Save(&env_, 1, "second").ok());
  EXPECT_EQ(Read("out/checkpoint-1/weights"), "second");
  EXPECT_THAT(*env_.List("out"), ElementsAre("checkpoint-1"));
}

TEST_F(AtomicFolderTest, CleaningTakesBackWhatNothingReplaced) {
  ASSERT_TRUE(Save(&env_, 1, "one").ok());
  ASSERT_TRUE(Save(&env_, 2, "two").ok());
  ASSERT_TRUE(
      env_.Rename("out/checkpoint-1", "out/.tmp-replaced-checkpoint-1-00000000000000ff").ok());
  ASSERT_TRUE(env_.CreateFolders("out/.tmp-replaced-checkpoint-2-00000000000000ff").ok());
  ASSERT_TRUE(env_.CreateFolders("out/.tmp-checkpoint-3-00000000000000aa").ok());
  Overwrite(&env_, "out/.tmp-checkpoint-3-00000000000000aa/weights", "half");
  Overwrite(&env_, "out/.tmp-metrics.jsonl-00000000000000aa", "half");
  Overwrite(&env_, "out/mine", "stays");
  ASSERT_TRUE(CleanTemporaries(&env_, "out").ok());
  EXPECT_THAT(*env_.List("out"), ElementsAre("checkpoint-1", "checkpoint-2", "mine"));
  EXPECT_EQ(Read("out/checkpoint-1/weights"), "one");
  EXPECT_TRUE(CleanTemporaries(&env_, "nowhere").ok());
}

TEST_F(AtomicFolderTest, CleaningOfOneNameLeavesAllOthers) {
  ASSERT_TRUE(Save(&env_, 1, "one").ok());
  ASSERT_TRUE(
      env_.Rename("out/checkpoint-1", "out/.tmp-replaced-checkpoint-1-00000000000000ff").ok());
  for (const char* name :
       {".tmp-checkpoint-1-00000000000000aa", ".tmp-checkpoint-1-2-00000000000000aa",
        ".tmp-checkpoint-12-00000000000000aa", ".tmp-checkpoint-1-mine", ".tmp-checkpoint-1-",
        ".tmp-replaced-checkpoint-2-00000000000000ff", "checkpoint-1-00000000000000aa"}) {
    ASSERT_TRUE(env_.CreateFolders(absl::StrCat("out/", name)).ok());
  }
  ASSERT_TRUE(CleanTemporariesOf(&env_, "out", "checkpoint-1").ok());
  EXPECT_THAT(*env_.List("out"),
              ElementsAre(".tmp-checkpoint-1-", ".tmp-checkpoint-1-2-00000000000000aa",
                          ".tmp-checkpoint-1-mine", ".tmp-checkpoint-12-00000000000000aa",
                          ".tmp-replaced-checkpoint-2-00000000000000ff", "checkpoint-1",
                          "checkpoint-1-00000000000000aa"));
  EXPECT_EQ(Read("out/checkpoint-1/weights"), "one");
  EXPECT_TRUE(CleanTemporariesOf(&env_, "nowhere", "checkpoint-1").ok());
}

// Its temporary name would be that of "x" while that is being replaced.
TEST_F(AtomicFolderTest, NamesThatReadAsTemporaryOnesAreRefused) {
  for (const char* name : {"replaced-x", ".tmp-x", "..", "a/b", ""}) {
    EXPECT_EQ(FolderCommit::Begin(&env_, "out", name).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
}

TEST_F(AtomicFolderTest, AtomicFileKeepsTheOldContentsOnAnyError) {
  ASSERT_TRUE(AtomicWriteFile(&env_, "out/f", "old").ok());
  const int64_t start = env_.operations();
  ASSERT_TRUE(AtomicWriteFile(&env_, "out/f", "old").ok());
  const int64_t count = env_.operations() - start;
  ASSERT_EQ(count, 6);  // create, append, sync, close, rename, sync of the folder
  for (int64_t k = 0; k < count; ++k) {
    env_.FailAt(env_.operations() + k, ENOSPC, false);
    EXPECT_TRUE(IsIoError(AtomicWriteFile(&env_, "out/f", "new")));
    EXPECT_EQ(Read("out/f"), k < 5 ? "old" : "new") << k;
    EXPECT_THAT(*env_.List("out"), ElementsAre("f")) << k;
    ASSERT_TRUE(AtomicWriteFile(&env_, "out/f", "old").ok());
  }
}

}  // namespace
}  // namespace qlora::engine
