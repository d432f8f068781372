#include "engine/io/atomic_folder.h"

#include <algorithm>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/io/atomic_file.h"
#include "engine/io/crc32c.h"
#include "engine/io/sha256.h"

namespace qlora::engine {
namespace {

constexpr absl::string_view kCheckpointPrefix = "checkpoint-";

}  // namespace

std::string CheckpointName(int64_t step) { return absl::StrCat(kCheckpointPrefix, step); }

std::optional<int64_t> CheckpointStep(absl::string_view name) {
  int64_t step = 0;
  absl::string_view digits = name;
  if (!absl::ConsumePrefix(&digits, kCheckpointPrefix)) return std::nullopt;
  // Writing the number again refuses signs, spaces and leading zeros, which would let two names be
  // one step.
  if (!absl::SimpleAtoi(digits, &step) || step < 0 || CheckpointName(step) != name) {
    return std::nullopt;
  }
  return step;
}

// Sums up what it writes; Close syncs and enters the file into the manifest.
class FolderCommit::File : public WritableFile {
 public:
  File(FolderCommit* commit, std::string name, std::unique_ptr<WritableFile> file)
      : commit_(commit), file_(std::move(file)) {
    entry_.set_name(std::move(name));
    ++commit_->open_files_;
  }
  // A file that was never closed leaves open_files_ above zero: Commit refuses.
  ~File() override = default;

  using WritableFile::Append;
  absl::Status Append(absl::string_view bytes) override {
    absl::Status status = file_->Append(bytes);
    if (!status.ok()) {
      commit_->failed_ = true;
      return status;
    }
    synced_ = false;
    Count(bytes);
    return status;
  }

  absl::Status Sync() override {
    absl::Status status = file_->Sync();
    if (status.ok()) {
      synced_ = true;
    } else {
      commit_->failed_ = true;
    }
    return status;
  }

  absl::Status Close() override {
    if (closed_) return absl::OkStatus();
    closed_ = true;
    --commit_->open_files_;
    absl::Status status = synced_ ? absl::OkStatus() : file_->Sync();
    if (status.ok()) status = file_->Close();
    if (!status.ok()) {
      commit_->failed_ = true;
      return status;
    }
    if (in_chunk_ > 0) entry_.add_chunk_crc32c(chunk_crc_);
    entry_.set_crc32c(crc_);
    entry_.set_sha256(sha256_.Finish());
    *commit_->manifest_.add_files() = std::move(entry_);
    return absl::OkStatus();
  }

 private:
  void Count(absl::string_view bytes) {
    entry_.set_size(entry_.size() + bytes.size());
    crc_ = ExtendCrc32c(crc_, bytes);
    sha256_.Update(bytes);
    while (!bytes.empty()) {
      const size_t take = std::min(bytes.size(), static_cast<size_t>(kManifestChunk - in_chunk_));
      chunk_crc_ = ExtendCrc32c(chunk_crc_, bytes.substr(0, take));
      in_chunk_ += static_cast<int64_t>(take);
      bytes.remove_prefix(take);
      if (in_chunk_ == kManifestChunk) {
        entry_.add_chunk_crc32c(chunk_crc_);
        chunk_crc_ = 0;
        in_chunk_ = 0;
      }
    }
  }

  FolderCommit* commit_;
  std::unique_ptr<WritableFile> file_;
  proto::FolderManifest::File entry_;
  Sha256 sha256_;
  uint32_t crc_ = 0;
  uint32_t chunk_crc_ = 0;
  int64_t in_chunk_ = 0;  // bytes
  bool synced_ = false;
  bool closed_ = false;
};

FolderCommit::FolderCommit(Env* env, std::string parent, std::string name)
    : env_(env), parent_(std::move(parent)), name_(std::move(name)) {
  temporary_ = JoinPath(parent_, absl::StrCat(kTemporaryPrefix, name_, "-", env_->RandomId()));
}

FolderCommit::~FolderCommit() {
  if (!renamed_) (void)env_->RemoveAll(temporary_);  // CleanTemporaries has another chance
}

bool FolderCommit::TakesName(absl::string_view name) {
  // Of a folder "replaced-x" a temporary could be taken for "x" while that is being replaced.
  return IsPlainName(name) && !absl::StartsWith(name, kTemporaryPrefix) &&
         !absl::StartsWith(absl::StrCat(kTemporaryPrefix, name), kReplacedPrefix);
}

absl::StatusOr<std::unique_ptr<FolderCommit>> FolderCommit::Begin(Env* env,
                                                                  const std::string& parent,
                                                                  const std::string& name) {
  if (!TakesName(name)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is no name for a folder"));
  }
  std::unique_ptr<FolderCommit> commit(new FolderCommit(env, parent, name));
  if (absl::Status status = env->CreateFolder(commit->temporary_); !status.ok()) return status;
  return commit;
}

absl::StatusOr<std::unique_ptr<WritableFile>> FolderCommit::NewFile(const std::string& name) {
  if (renamed_) return absl::FailedPreconditionError(absl::StrCat(name_, " is committed"));
  if (!IsPlainName(name) || name == kManifestFile) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is no name for a file of ", name_));
  }
  const std::string path = JoinPath(temporary_, name);
  auto present = env_->IsPresent(path);
  if (!present.ok()) return present.status();
  if (*present) {
    return absl::AlreadyExistsError(absl::StrCat(name, " is written twice into ", name_));
  }
  auto file = env_->NewWritableFile(path);
  if (!file.ok()) {
    failed_ = true;
    return file.status();
  }
  return std::unique_ptr<WritableFile>(new File(this, name, *std::move(file)));
}

absl::Status FolderCommit::AddFile(const std::string& name, absl::string_view contents) {
  auto file = NewFile(name);
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->Append(contents); !status.ok()) return status;
  return (*file)->Close();
}

absl::Status FolderCommit::WriteManifest(const CommitInfo& info) {
  manifest_.set_step(info.step);
  manifest_.set_world(info.world);
  manifest_.set_job_hash(info.job_hash);
  manifest_.set_chunk_bytes(static_cast<uint64_t>(kManifestChunk));
  std::sort(manifest_.mutable_files()->pointer_begin(), manifest_.mutable_files()->pointer_end(),
            [](const auto* a, const auto* b) { return a->name() < b->name(); });
  auto file = env_->NewWritableFile(JoinPath(temporary_, kManifestFile));
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->Append(EncodeManifest(manifest_)); !status.ok()) return status;
  if (absl::Status status = (*file)->Sync(); !status.ok()) return status;
  return (*file)->Close();
}

absl::Status FolderCommit::Rename() {
  const std::string path = JoinPath(parent_, name_);
  std::string replaced;
  auto present = env_->IsPresent(path);
  if (!present.ok()) return present.status();
  if (*present) {
    replaced = JoinPath(parent_, absl::StrCat(kReplacedPrefix, name_, "-", env_->RandomId()));
    if (absl::Status status = env_->Rename(path, replaced); !status.ok()) return status;
  }
  if (absl::Status status = env_->Rename(temporary_, path); !status.ok()) {
    if (!replaced.empty()) (void)env_->Rename(replaced, path);
    return status;
  }
  renamed_ = true;
  if (absl::Status status = env_->SyncFolder(parent_); !status.ok()) return status;
  // The new one is durable: what the old one leaves behind is CleanTemporaries' to remove.
  if (!replaced.empty()) (void)env_->RemoveAll(replaced);
  return absl::OkStatus();
}

absl::Status FolderCommit::Commit(const CommitInfo& info) {
  if (renamed_) return absl::FailedPreconditionError(absl::StrCat(name_, " is committed"));
  if (failed_ || open_files_ != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(name_, failed_ ? ": writing a file failed" : ": a file was not closed"));
  }
  absl::Status status = WriteManifest(info);
  if (status.ok()) status = env_->SyncFolder(temporary_);
  if (status.ok()) status = Rename();
  if (!status.ok()) failed_ = true;
  return status;
}

namespace {

// Steps of the checkpoint folders in `parent`, highest first.
absl::StatusOr<std::vector<int64_t>> Steps(Env* env, const std::string& parent) {
  auto names = env->List(parent);
  if (!names.ok()) return names.status();
  std::vector<int64_t> steps;
  for (const std::string& name : *names) {
    const std::optional<int64_t> step = CheckpointStep(name);
    if (!step.has_value()) continue;
    auto stat = env->Stat(JoinPath(parent, name), /*follow=*/true);
    if (IsIoError(stat.status())) return stat.status();
    if (stat.ok() && stat->kind == FileStat::Kind::kFolder) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

}  // namespace

absl::StatusOr<proto::FolderManifest> VerifyCheckpoint(Env* env, const std::string& path,
                                                       VerifyDepth depth) {
  absl::StatusOr<proto::FolderManifest> manifest = VerifyFolder(env, path, depth);
  if (manifest.ok() && CheckpointStep(BaseName(path)) != manifest->step()) {
    return absl::DataLossError(absl::StrCat(path, ": its manifest is of step ", manifest->step()));
  }
  return manifest;
}

absl::StatusOr<NewestCheckpoint> FindNewestValid(Env* env, const std::string& parent) {
  NewestCheckpoint newest;
  auto steps = Steps(env, parent);
  if (absl::IsNotFound(steps.status())) return newest;
  if (!steps.ok()) return steps.status();
  for (int64_t step : *steps) {
    const std::string path = JoinPath(parent, CheckpointName(step));
    auto manifest = VerifyCheckpoint(env, path);
    if (IsIoError(manifest.status())) return manifest.status();
    if (!manifest.ok()) {
      newest.refused.emplace_back(path, manifest.status());
      continue;
    }
    newest.path = path;
    newest.manifest = *std::move(manifest);
    return newest;
  }
  return newest;
}

absl::StatusOr<std::vector<std::string>> RemoveOldest(Env* env, const std::string& parent,
                                                      int64_t current_step, int64_t keep_last,
                                                      const std::string& best) {
  auto steps = Steps(env, parent);
  if (!steps.ok()) return steps.status();
  std::vector<std::string> removed;
  std::vector<int64_t> own;  // highest first
  for (int64_t step : *steps) {
    if (step <= current_step) own.push_back(step);
  }
  const size_t keep = static_cast<size_t>(std::max<int64_t>(keep_last, 1));
  while (own.size() > keep) {
    const std::string name = CheckpointName(own.back());
    own.pop_back();
    if (name == best) continue;
    const std::string temporary =
        JoinPath(parent, absl::StrCat(kTemporaryPrefix, "removed-", name, "-", env->RandomId()));
    absl::Status status = env->Rename(JoinPath(parent, name), temporary);
    // Else a power cut could keep the old name and lose what was in it.
    if (status.ok()) status = env->SyncFolder(parent);
    if (status.ok()) status = env->RemoveAll(temporary);
    if (!status.ok()) return status;
    removed.push_back(name);
  }
  return removed;
}

}  // namespace qlora::engine
