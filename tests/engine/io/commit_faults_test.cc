// The commit protocol under faults: at every operation of a run that saves three checkpoints, and
// does the last step again, the process dies, the power goes, or the disk fails. Seeds are fixed
// and printed.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"
#include "engine/io/atomic_folder.h"
#include "tests/support/fault_scale.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using tests::FaultyEnv;
using Loss = FaultyEnv::Loss;

constexpr char kOut[] = "out";

std::string Payload(int64_t step, int version) {
  std::string bytes = absl::StrCat("step ", step, " version ", version, " ");
  bytes.resize(3000, static_cast<char>('a' + step + version));
  return bytes;
}

struct Save {
  int64_t step;
  int version;  // of the contents, where a step is saved twice
};

// Step 3 is saved twice, as after a resume.
constexpr Save kSaves[] = {{1, 0}, {2, 0}, {3, 0}, {3, 1}};

absl::Status SaveOne(Env* env, const Save& save) {
  auto commit = FolderCommit::Begin(env, kOut, CheckpointName(save.step));
  if (!commit.ok()) return commit.status();
  auto weights = (*commit)->NewFile("weights");
  if (!weights.ok()) return weights.status();
  const std::string payload = Payload(save.step, save.version);
  for (size_t i = 0; i < payload.size(); i += 1000) {  // several writes, to be lost one by one
    absl::Status status = (*weights)->Append(absl::string_view(payload).substr(i, 1000));
    if (!status.ok()) return status;
  }
  if (absl::Status status = (*weights)->Close(); !status.ok()) return status;
  absl::Status status = (*commit)->AddFile("state", absl::StrCat(save.step, ".", save.version));
  if (!status.ok()) return status;
  status = (*commit)->Commit({save.step, 1, "job"});
  if (!status.ok()) return status;
  // Old ones go only now; whether that succeeds is not what was promised.
  (void)RemoveOldest(env, kOut, save.step, /*keep_last=*/2, /*best=*/"");
  return absl::OkStatus();
}

// Saves until the first error. Returns how many were acknowledged.
size_t RunSaves(Env* env, absl::Status* error = nullptr) {
  size_t acknowledged = 0;
  for (const Save& save : kSaves) {
    absl::Status status = SaveOne(env, save);
    if (!status.ok()) {
      if (error != nullptr) *error = status;
      break;
    }
    ++acknowledged;
  }
  return acknowledged;
}

std::unique_ptr<FaultyEnv> FreshEnv() {
  auto env = std::make_unique<FaultyEnv>();
  EXPECT_TRUE(env->CreateFolders(kOut).ok());
  return env;
}

int64_t CountOperations() {
  auto env = FreshEnv();
  const int64_t start = env->operations();
  EXPECT_EQ(RunSaves(env.get()), std::size(kSaves));
  return env->operations() - start;
}

std::string ReadOr(Env* env, const std::string& path) {
  return env->ReadFile(path, 1 << 20).value_or("(none)");
}

// What must hold when the next process starts after `acknowledged` saves were promised. Returns ""
// or what is wrong.
std::string Fault(FaultyEnv* env, size_t acknowledged) {
  if (absl::Status status = CleanTemporaries(env, kOut); !status.ok()) {
    return absl::StrCat("cleaning: ", status.ToString());
  }
  auto names = env->List(kOut);
  for (const std::string& name : *names) {
    if (absl::StartsWith(name, kTemporaryPrefix)) return absl::StrCat("left over: ", name);
    // Under its final name a checkpoint is whole, one that was being removed too.
    const absl::Status whole = VerifyFolder(env, JoinPath(kOut, name)).status();
    if (!whole.ok()) return absl::StrCat("torn: ", name, ": ", whole.ToString());
  }
  auto newest = FindNewestValid(env, kOut);
  if (!newest.ok()) return newest.status().ToString();
  if (!newest->path.has_value()) return acknowledged == 0 ? "" : "everything is lost";
  const int64_t step = newest->manifest.step();
  // The last one promised, or the one that was under way.
  std::vector<Save> allowed;
  if (acknowledged > 0) allowed.push_back(kSaves[acknowledged - 1]);
  if (acknowledged < std::size(kSaves)) allowed.push_back(kSaves[acknowledged]);
  for (const Save& save : allowed) {
    if (step == save.step &&
        ReadOr(env, JoinPath(*newest->path, "weights")) == Payload(save.step, save.version) &&
        ReadOr(env, JoinPath(*newest->path, "state")) ==
            absl::StrCat(save.step, ".", save.version)) {
      return "";
    }
  }
  return absl::StrCat("newest is step ", step, " or has other contents; ", acknowledged,
                      " were acknowledged");
}

// Dies at operation k, restarts under `loss`; the next process may die as well (`again`).
std::string DieAndCheck(int64_t k, Loss loss, uint64_t seed) {
  auto env = FreshEnv();
  env->DieAt(env->operations() + k);
  const size_t acknowledged = RunSaves(env.get());
  auto after = env->Restart(loss, seed);
  if (seed % 4 == 3) {
    // Hit again while it cleans up.
    after->DieAt(after->operations() + static_cast<int64_t>(seed / 4 % 12));
    (void)CleanTemporaries(after.get(), kOut);
    after = after->Restart(loss, seed + 1);
  }
  const std::string fault = Fault(after.get(), acknowledged);
  if (!fault.empty()) return fault;
  // And the next save succeeds.
  if (absl::Status status = SaveOne(after.get(), {9, 9}); !status.ok()) return status.ToString();
  return FindNewestValid(after.get(), kOut)->manifest.step() == 9 ? ""
                                                                  : "the next save is not found";
}

TEST(CommitFaultsTest, KilledAtEveryOperation) {
  const int64_t count = CountOperations();
  for (int64_t k = 0; k <= count; ++k) {
    ASSERT_EQ(DieAndCheck(k, Loss::kNothing, 0), "") << "operation " << k;
    ASSERT_EQ(DieAndCheck(k, Loss::kNothing, 3 + 4 * static_cast<uint64_t>(k)), "") << k;
  }
}

TEST(CommitFaultsTest, PowerLostAtEveryOperation) {
  const int64_t count = CountOperations();
  const uint64_t subsets = uint64_t(tests::Times(16, 400));
  int64_t states = 0;
  for (int64_t k = 0; k <= count; ++k) {
    ASSERT_EQ(DieAndCheck(k, Loss::kAllUnsynced, 0), "") << "operation " << k;
    ++states;
    for (uint64_t torn = 1; torn <= 3; ++torn, ++states) {
      ASSERT_EQ(DieAndCheck(k, Loss::kTornSector, 4 * torn), "") << "operation " << k;
    }
    for (uint64_t seed = 1; seed <= subsets; ++seed, ++states) {
      ASSERT_EQ(DieAndCheck(k, Loss::kRandom, seed), "") << "operation " << k << " seed " << seed;
    }
  }
  EXPECT_GE(states, tests::Times(1000, 20'000));
}

TEST(CommitFaultsTest, EveryOperationFails) {
  const int64_t count = CountOperations();
  for (int error : {EIO, ENOSPC}) {
    for (bool forever : {false, true}) {
      for (int64_t k = 0; k < count; ++k) {
        auto env = FreshEnv();
        env->FailAt(env->operations() + k, error, forever);
        absl::Status status;
        const size_t acknowledged = RunSaves(env.get(), &status);
        ASSERT_TRUE(env->faulted());
        if (acknowledged < std::size(kSaves)) {
          ASSERT_TRUE(IsIoError(status)) << status;
          ASSERT_TRUE(absl::StrContains(status.message(), kOut)) << status;
        }
        env->StopFailing();
        auto after = env->Restart(Loss::kNothing, 0);
        ASSERT_EQ(Fault(after.get(), acknowledged), "") << "operation " << k << " error " << error;
        auto dark = env->Restart(Loss::kAllUnsynced, 0);
        ASSERT_EQ(Fault(dark.get(), acknowledged), "") << "operation " << k << " error " << error;
      }
    }
  }
}

TEST(CommitFaultsTest, AnAtomicFileIsOldOrNewAndNewOnceAcknowledged) {
  for (int64_t k = 0; k <= 6; ++k) {
    for (uint64_t seed = 0; seed <= 16; ++seed) {
      auto env = FreshEnv();
      ASSERT_TRUE(AtomicWriteFile(env.get(), "out/f", "old").ok());
      env->DieAt(env->operations() + k);
      const bool acknowledged = AtomicWriteFile(env.get(), "out/f", "new").ok();
      auto after = env->Restart(seed == 0 ? Loss::kAllUnsynced : Loss::kRandom, seed);
      const std::string found = ReadOr(after.get(), "out/f");
      ASSERT_TRUE(found == "new" || (found == "old" && !acknowledged)) << k << " " << found;
    }
  }
}

// Forgets one sync of each save, the k-th from where the temporary folder appears: whichever it is,
// the tests above must notice, or they prove nothing.
class ForgetfulEnv : public FaultyEnv {
 public:
  explicit ForgetfulEnv(int64_t forgets) : forgets_(forgets) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path) override {
    auto file = FaultyEnv::NewWritableFile(path);
    if (!file.ok()) return file;
    return std::unique_ptr<WritableFile>(new File(this, *std::move(file)));
  }
  absl::Status CreateFolder(const std::string& path) override {
    syncs_ = 0;
    return FaultyEnv::CreateFolder(path);
  }
  absl::Status SyncFolder(const std::string& path) override {
    return IsForgotten() ? absl::OkStatus() : FaultyEnv::SyncFolder(path);
  }
  // The most that one save has asked for.
  int64_t most() const { return most_; }

 private:
  class File : public WritableFile {
   public:
    File(ForgetfulEnv* env, std::unique_ptr<WritableFile> file)
        : env_(env), file_(std::move(file)) {}
    absl::Status Append(absl::string_view bytes) override { return file_->Append(bytes); }
    absl::Status Sync() override { return env_->IsForgotten() ? absl::OkStatus() : file_->Sync(); }
    absl::Status Close() override { return file_->Close(); }

   private:
    ForgetfulEnv* env_;
    std::unique_ptr<WritableFile> file_;
  };
  bool IsForgotten() {
    most_ = std::max(most_, syncs_ + 1);
    return syncs_++ == forgets_;
  }

  const int64_t forgets_;
  int64_t syncs_ = 0, most_ = 0;
};

// How many of the moments at which power may go show a fault.
int64_t Noticed(int64_t forgets, int64_t* syncs) {
  int64_t noticed = 0;
  const int64_t count = CountOperations();
  for (int64_t k = 0; k <= count; ++k) {
    ForgetfulEnv env(forgets);
    EXPECT_TRUE(env.FaultyEnv::CreateFolder(kOut).ok());
    EXPECT_TRUE(env.FaultyEnv::SyncFolder(".").ok());
    env.DieAt(env.operations() + k);
    const size_t acknowledged = RunSaves(&env);
    *syncs = std::max(*syncs, env.most());
    for (uint64_t seed = 0; seed <= 8; ++seed) {
      auto after = env.Restart(seed == 0 ? Loss::kAllUnsynced : Loss::kRandom, seed);
      noticed += Fault(after.get(), acknowledged).empty() ? 0 : 1;
    }
  }
  return noticed;
}

TEST(CommitFaultsTest, EveryForgottenSyncIsNoticed) {
  int64_t syncs = 0;
  EXPECT_EQ(Noticed(/*forgets=*/-1, &syncs), 0);
  // Weights, state, manifest, their folder, its parent, and before the files of an old one go.
  ASSERT_EQ(syncs, 6);
  for (int64_t forgets = 0; forgets < syncs; ++forgets) {
    EXPECT_GT(Noticed(forgets, &syncs), 0) << "sync " << forgets;
  }
}

// Gives the folder its final name before its manifest is written.
class HastyEnv : public FaultyEnv {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path) override {
    if (BaseName(path) != kManifestFile) return FaultyEnv::NewWritableFile(path);
    const std::string temporary = ParentPath(path);
    // ".tmp-checkpoint-3-0000000000000001"
    const std::string name = BaseName(temporary).substr(5, sizeof("checkpoint-3") - 1);
    if (absl::Status s = FaultyEnv::Rename(temporary, JoinPath(kOut, name)); !s.ok()) return s;
    renamed_ = true;
    return FaultyEnv::NewWritableFile(JoinPath(JoinPath(kOut, name), kManifestFile));
  }
  absl::Status SyncFolder(const std::string& path) override {
    const std::string name = BaseName(path);
    if (!renamed_ || !absl::StartsWith(name, kTemporaryPrefix)) return FaultyEnv::SyncFolder(path);
    return FaultyEnv::SyncFolder(JoinPath(kOut, name.substr(5, sizeof("checkpoint-3") - 1)));
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (!renamed_ ||
        !absl::StartsWith(BaseName(from), absl::StrCat(kTemporaryPrefix, "checkpoint")))
      return FaultyEnv::Rename(from, to);
    renamed_ = false;
    return absl::OkStatus();
  }

 private:
  bool renamed_ = false;
};

TEST(CommitFaultsTest, ARenameThatComesTooEarlyIsNoticed) {
  int64_t noticed = 0;
  const int64_t count = CountOperations();
  for (int64_t k = 0; k <= count; ++k) {
    HastyEnv env;
    ASSERT_TRUE(env.CreateFolders(kOut).ok());
    env.DieAt(env.operations() + k);
    const Save first = kSaves[0];
    const size_t acknowledged = SaveOne(&env, first).ok() ? 1 : 0;
    auto after = env.Restart(Loss::kNothing, 0);
    noticed += Fault(after.get(), acknowledged).empty() ? 0 : 1;
  }
  EXPECT_GT(noticed, 0);
}

}  // namespace
}  // namespace qlora::engine
