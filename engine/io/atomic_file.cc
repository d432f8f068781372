#include "engine/io/atomic_file.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace qlora::engine {
namespace {

class AtomicFile : public WritableFile {
 public:
  AtomicFile(Env* env, std::string path, std::string temporary, std::unique_ptr<WritableFile> file)
      : env_(env),
        path_(std::move(path)),
        temporary_(std::move(temporary)),
        file_(std::move(file)) {}

  ~AtomicFile() override { Abandon(); }

  using WritableFile::Append;
  absl::Status Append(absl::string_view bytes) override {
    if (file_ == nullptr) return absl::FailedPreconditionError(absl::StrCat(path_, " is closed"));
    synced_ = false;
    return Track(file_->Append(bytes));
  }

  absl::Status Sync() override {
    if (file_ == nullptr) return absl::FailedPreconditionError(absl::StrCat(path_, " is closed"));
    absl::Status status = Track(file_->Sync());
    synced_ = status.ok();
    return status;
  }

  absl::Status Close() override {
    if (file_ == nullptr) return absl::OkStatus();
    if (error_.ok() && !synced_) error_ = file_->Sync();
    if (error_.ok()) error_ = file_->Close();
    if (error_.ok()) error_ = env_->Rename(temporary_, path_);
    if (!error_.ok()) {
      Abandon();
      return error_;
    }
    file_.reset();
    return env_->SyncFolder(ParentPath(path_));
  }

 private:
  // Keeps the first error: a file that once failed to be written must not appear.
  absl::Status Track(absl::Status status) {
    if (error_.ok()) error_ = status;
    return status;
  }

  void Abandon() {
    if (file_ == nullptr) return;
    file_.reset();
    (void)env_->RemoveFile(temporary_);  // CleanTemporaries has another chance
  }

  Env* env_;
  std::string path_;
  std::string temporary_;
  std::unique_ptr<WritableFile> file_;  // null once closed
  bool synced_ = false;
  absl::Status error_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WritableFile>> NewAtomicFile(Env* env, const std::string& path) {
  const std::string temporary = JoinPath(
      ParentPath(path), absl::StrCat(kTemporaryPrefix, BaseName(path), "-", env->RandomId()));
  auto file = env->NewWritableFile(temporary);
  if (!file.ok()) return file.status();
  return std::unique_ptr<WritableFile>(new AtomicFile(env, path, temporary, *std::move(file)));
}

absl::Status AtomicWriteFile(Env* env, const std::string& path, absl::string_view contents) {
  auto file = NewAtomicFile(env, path);
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->Append(contents); !status.ok()) return status;
  return (*file)->Close();
}

namespace {

// What ".tmp-<name>-<id>" of NewAtomicFile, FolderCommit and their like was to become: `name`. All
// end in an Env's RandomId. Whatever else a user calls so is no business of ours.
std::optional<absl::string_view> TargetOf(absl::string_view found, absl::string_view prefix) {
  constexpr size_t kIdLetters = 16;
  if (!absl::ConsumePrefix(&found, prefix) || found.size() <= kIdLetters) return std::nullopt;
  const absl::string_view id = found.substr(found.size() - kIdLetters);
  found.remove_suffix(kIdLetters);
  const auto is_hex = [](char c) { return absl::ascii_isxdigit(c); };
  if (!std::all_of(id.begin(), id.end(), is_hex) || !absl::ConsumeSuffix(&found, "-")) {
    return std::nullopt;
  }
  return found;
}

// Moves back what a writer had moved away for a new one that never came.
absl::Status TakeBack(Env* env, const std::string& folder, const std::vector<std::string>& names) {
  bool taken_back = false;
  for (const std::string& name : names) {
    const std::optional<absl::string_view> target = TargetOf(name, kReplacedPrefix);
    if (!target) continue;
    const std::string original = JoinPath(folder, *target);
    auto present = env->IsPresent(original);
    if (!present.ok()) return present.status();
    if (*present) continue;
    absl::Status status = env->Rename(JoinPath(folder, name), original);
    if (!status.ok()) return status;
    taken_back = true;
  }
  return taken_back ? env->SyncFolder(folder) : absl::OkStatus();
}

// Those of `folder` that `is_meant`; OK if there is no such folder.
absl::Status Clean(Env* env, const std::string& folder,
                   const std::function<bool(absl::string_view name)>& is_meant) {
  auto names = env->List(folder);
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  if (!names.ok()) return names.status();
  names->erase(std::remove_if(names->begin(), names->end(),
                              [&](const std::string& name) { return !is_meant(name); }),
               names->end());
  if (absl::Status status = TakeBack(env, folder, *names); !status.ok()) return status;
  for (const std::string& name : *names) {
    absl::Status status = env->RemoveAll(JoinPath(folder, name));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CleanTemporaries(Env* env, const std::string& folder) {
  return Clean(env, folder,
               [](absl::string_view name) { return TargetOf(name, kTemporaryPrefix).has_value(); });
}

absl::Status CleanTemporariesOf(Env* env, const std::string& folder, absl::string_view name) {
  return Clean(env, folder, [&](absl::string_view found) {
    return TargetOf(found, kTemporaryPrefix) == name || TargetOf(found, kReplacedPrefix) == name;
  });
}

}  // namespace qlora::engine
