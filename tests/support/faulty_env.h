// A disk in memory that fails on demand and forgets what was never synced.
//
// Model, stricter than any real file system: a file's bytes become durable at its Sync, a name (its
// creation, renaming, removal) at the SyncFolder of the folder it stands in, and until then each
// unsynced write and each unsynced name may or may not reach the disk, independently of all others.
//
// Operations are numbered from 0 as they come (reads too), so that a test can walk over all of
// them:
//   env.FailAt(k, EIO, once)  operation k fails;  env.DieAt(k)  k and all later ones do nothing and
//   fail.
// After death, env.Restart(...) is the disk as the next process finds it.
#ifndef QLORA_TESTS_SUPPORT_FAULTY_ENV_H_
#define QLORA_TESTS_SUPPORT_FAULTY_ENV_H_

#include <algorithm>
#include <cerrno>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/io/env.h"

namespace qlora::tests {

class FaultyEnv : public engine::Env {
 public:
  enum class Loss {
    kNothing,  // the process was killed, the machine ran on: all that was written is there
    kAllUnsynced,
    kTornSector,  // all of it, but for the last write of each file, of which part of the last
                  // sector is missing
    kRandom,      // each unsynced write and name survives with probability 1/2, some writes only in
                  // part
  };

  FaultyEnv() : root_(NewInode(/*folder=*/true)) {}

  // Operations so far.
  int64_t operations() const { return operations_; }
  // The operation of that number fails with `error`, as do all after it if `forever`. An Append
  // that fails with ENOSPC has written half.
  void FailAt(int64_t operation, int error, bool forever) {
    fail_at_ = operation;
    fail_error_ = error;
    fail_forever_ = forever;
  }
  void StopFailing() { fail_at_ = kNever; }
  void DieAt(int64_t operation) { die_at_ = operation; }
  // True once an operation has failed by order.
  bool faulted() const { return faulted_; }
  void set_now(double seconds) { now_ = seconds; }
  // What FreeSpace says; nothing is held against it.
  void set_free_space(int64_t bytes) { free_space_ = bytes; }
  // Copies of every operation's name, for messages.
  const std::vector<std::string>& log() const { return log_; }

  // The disk after power came back (or, with kNothing, after the process died).
  std::unique_ptr<FaultyEnv> Restart(Loss loss, uint64_t seed) const;

  absl::StatusOr<std::unique_ptr<engine::WritableFile>> NewWritableFile(
      const std::string& path) override {
    return OpenForWriting(path, /*truncate=*/true);
  }
  absl::StatusOr<std::unique_ptr<engine::WritableFile>> NewAppendableFile(
      const std::string& path) override {
    return OpenForWriting(path, /*truncate=*/false);
  }
  absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) override;
  absl::StatusOr<std::unique_ptr<engine::ReadableFile>> NewReadableFile(
      const std::string& path) override;
  absl::StatusOr<engine::MappedFile> MapFile(const std::string& path) override;
  absl::Status CreateFolder(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status SyncFolder(const std::string& path) override;
  absl::Status RemoveFile(const std::string& path) override { return Remove(path, false); }
  absl::Status RemoveEmptyFolder(const std::string& path) override { return Remove(path, true); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  absl::StatusOr<engine::FileStat> Stat(const std::string& path, bool follow) override;
  absl::StatusOr<int64_t> FreeSpace(const std::string& path) override {
    std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (int error = Enter("space", path)) return Fail(error, "ask for space at", path);
    return free_space_;
  }
  double NowSeconds() override { return now_; }
  double MonotonicSeconds() override { return now_; }
  std::string RandomId() override { return absl::StrFormat("%016x", ++ids_); }
  std::string HostName() override { return "testhost"; }
  int64_t ProcessId() override { return 4242; }

 private:
  static constexpr size_t kSectorBytes = 512;
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  // A write, or a truncation (offset = -1), that is not synced yet.
  struct Write {
    int64_t offset;
    std::string bytes;
  };
  struct Inode {
    bool folder;
    std::string data;     // as programs see it
    std::string durable;  // as of the last sync
    std::vector<Write> pending;
    std::map<std::string, std::shared_ptr<Inode>> entries;
    std::map<std::string, std::shared_ptr<Inode>> durable_entries;
  };
  using InodePtr = std::shared_ptr<Inode>;
  // Changes of names that reach the disk together or not at all; null removes.
  struct Change {
    InodePtr folder;
    std::string name;
    InodePtr inode;
  };
  using NameOperation = std::vector<Change>;

  class Writer;
  class Reader;

  static InodePtr NewInode(bool folder) {
    return std::make_shared<Inode>(Inode{folder, {}, {}, {}, {}, {}});
  }

  // Counts an operation; the error it must fail with, or 0.
  int Enter(absl::string_view what, const std::string& path) {
    const int64_t operation = operations_++;
    log_.push_back(absl::StrCat(what, " ", path));
    const bool dead = operation >= die_at_;
    const bool fails = operation == fail_at_ || (fail_forever_ && operation > fail_at_);
    if (!dead && !fails) return 0;
    faulted_ = true;
    return dead ? EIO : fail_error_;
  }
  static absl::Status Fail(int error, absl::string_view what, const std::string& path) {
    return engine::ErrnoStatus(error, what, path);
  }

  InodePtr Walk(const std::string& path) const {
    InodePtr inode = root_;
    for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
      if (part == ".") continue;
      if (!inode->folder) return nullptr;
      const auto it = inode->entries.find(std::string(part));
      if (it == inode->entries.end()) return nullptr;
      inode = it->second;
    }
    return inode;
  }
  InodePtr Parent(const std::string& path) const {
    InodePtr parent = Walk(engine::ParentPath(path));
    return parent != nullptr && parent->folder ? parent : nullptr;
  }
  void Apply(NameOperation operation) {
    for (const Change& change : operation) SetEntry(&change.folder->entries, change);
    names_.push_back(std::move(operation));
  }
  static void SetEntry(std::map<std::string, InodePtr>* entries, const Change& change) {
    if (change.inode == nullptr) {
      entries->erase(change.name);
    } else {
      (*entries)[change.name] = change.inode;
    }
  }
  absl::StatusOr<std::unique_ptr<engine::WritableFile>> OpenForWriting(const std::string& path,
                                                                       bool truncate);
  absl::Status Remove(const std::string& path, bool folder);

  mutable std::recursive_mutex mutex_;
  InodePtr root_;
  std::vector<NameOperation> names_;  // not synced, oldest first
  int64_t operations_ = 0;
  int64_t fail_at_ = kNever;
  int fail_error_ = 0;
  bool fail_forever_ = false;
  int64_t die_at_ = kNever;
  bool faulted_ = false;
  std::vector<std::string> log_;
  double now_ = 1.7e9;
  int64_t free_space_ = int64_t{1} << 40;
  uint64_t ids_ = 0;
};

class FaultyEnv::Writer : public engine::WritableFile {
 public:
  Writer(FaultyEnv* env, std::string path, InodePtr inode)
      : env_(env), path_(std::move(path)), inode_(std::move(inode)) {}

  absl::Status Append(absl::string_view bytes) override {
    std::lock_guard<std::recursive_mutex> lock(env_->mutex_);
    const int error = env_->Enter("append", path_);
    if (error != 0 && error != ENOSPC) return Fail(error, "write", path_);
    if (error == ENOSPC) bytes = bytes.substr(0, bytes.size() / 2);
    inode_->pending.push_back({static_cast<int64_t>(inode_->data.size()), std::string(bytes)});
    inode_->data.append(bytes.data(), bytes.size());
    return error == 0 ? absl::OkStatus() : Fail(error, "write", path_);
  }
  absl::Status Sync() override {
    std::lock_guard<std::recursive_mutex> lock(env_->mutex_);
    if (int error = env_->Enter("sync", path_)) return Fail(error, "sync", path_);
    inode_->durable = inode_->data;
    inode_->pending.clear();
    return absl::OkStatus();
  }
  absl::Status Close() override {
    std::lock_guard<std::recursive_mutex> lock(env_->mutex_);
    if (closed_) return absl::OkStatus();
    closed_ = true;
    if (int error = env_->Enter("close", path_)) return Fail(error, "close", path_);
    return absl::OkStatus();
  }

 private:
  FaultyEnv* env_;
  std::string path_;
  InodePtr inode_;
  bool closed_ = false;
};

class FaultyEnv::Reader : public engine::ReadableFile {
 public:
  Reader(FaultyEnv* env, std::string path, std::string data)
      : env_(env), path_(std::move(path)), data_(std::move(data)) {}

  absl::StatusOr<int64_t> Read(absl::Span<char> buffer) override {
    std::lock_guard<std::recursive_mutex> lock(env_->mutex_);
    if (int error = env_->Enter("read", path_)) return Fail(error, "read", path_);
    const size_t n = std::min(buffer.size(), data_.size() - at_);
    std::copy_n(data_.begin() + static_cast<std::ptrdiff_t>(at_), n, buffer.begin());
    at_ += n;
    return static_cast<int64_t>(n);
  }
  int64_t size() const override { return static_cast<int64_t>(data_.size()); }

 private:
  FaultyEnv* env_;
  std::string path_;
  std::string data_;
  size_t at_ = 0;
};

inline absl::StatusOr<std::unique_ptr<engine::WritableFile>> FaultyEnv::OpenForWriting(
    const std::string& path, bool truncate) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("create", path)) return Fail(error, "create", path);
  const InodePtr parent = Parent(path);
  if (parent == nullptr) return Fail(ENOENT, "create", path);
  InodePtr inode = Walk(path);
  if (inode != nullptr && inode->folder) return Fail(EISDIR, "create", path);
  if (inode == nullptr) {
    inode = NewInode(/*folder=*/false);
    Apply({{parent, engine::BaseName(path), inode}});
  } else if (truncate) {
    inode->data.clear();
    inode->pending.push_back({-1, ""});
  }
  return std::unique_ptr<engine::WritableFile>(new Writer(this, path, inode));
}

inline absl::StatusOr<std::unique_ptr<engine::ReadableFile>> FaultyEnv::NewReadableFile(
    const std::string& path) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("open", path)) return Fail(error, "open", path);
  const InodePtr inode = Walk(path);
  if (inode == nullptr) return Fail(ENOENT, "open", path);
  if (inode->folder) return absl::InvalidArgumentError(absl::StrCat(path, " is a folder"));
  return std::unique_ptr<engine::ReadableFile>(new Reader(this, path, inode->data));
}

inline absl::StatusOr<std::string> FaultyEnv::ReadFile(const std::string& path, int64_t max_bytes) {
  auto file = NewReadableFile(path);
  if (!file.ok()) return file.status();
  if ((*file)->size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is too large"));
  }
  std::string data(static_cast<size_t>((*file)->size()), '\0');
  auto n = (*file)->Read(absl::MakeSpan(data));
  if (!n.ok()) return n.status();
  return data;
}

inline absl::StatusOr<engine::MappedFile> FaultyEnv::MapFile(const std::string& path) {
  auto data = ReadFile(path, kNever);
  if (!data.ok()) return data.status();
  auto owner = std::make_shared<const std::string>(*std::move(data));
  const auto* bytes = reinterpret_cast<const uint8_t*>(owner->data());
  const size_t size = owner->size();
  return engine::MappedFile(std::move(owner), {bytes, size});
}

inline absl::Status FaultyEnv::CreateFolder(const std::string& path) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("mkdir", path)) return Fail(error, "create folder", path);
  const InodePtr parent = Parent(path);
  if (parent == nullptr) return Fail(ENOENT, "create folder", path);
  if (Walk(path) != nullptr) return Fail(EEXIST, "create folder", path);
  Apply({{parent, engine::BaseName(path), NewInode(/*folder=*/true)}});
  return absl::OkStatus();
}

inline absl::Status FaultyEnv::Rename(const std::string& from, const std::string& to) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter(absl::StrCat("rename ", from, " to"), to)) {
    return Fail(error, "rename to", to);
  }
  const InodePtr inode = Walk(from);
  const InodePtr from_parent = Parent(from);
  const InodePtr to_parent = Parent(to);
  if (inode == nullptr || to_parent == nullptr) return Fail(ENOENT, "rename to", to);
  if (const InodePtr old = Walk(to); old != nullptr) {
    if (old->folder != inode->folder) return Fail(old->folder ? EISDIR : ENOTDIR, "rename to", to);
    if (!old->entries.empty()) return Fail(ENOTEMPTY, "rename to", to);
  }
  Apply({{from_parent, engine::BaseName(from), nullptr}, {to_parent, engine::BaseName(to), inode}});
  return absl::OkStatus();
}

inline absl::Status FaultyEnv::SyncFolder(const std::string& path) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("syncfolder", path)) return Fail(error, "sync folder", path);
  const InodePtr folder = Walk(path);
  if (folder == nullptr || !folder->folder) return Fail(ENOENT, "sync folder", path);
  std::vector<NameOperation> rest;
  for (NameOperation& operation : names_) {
    const bool touches = std::any_of(operation.begin(), operation.end(),
                                     [&](const Change& c) { return c.folder == folder; });
    if (!touches) {
      rest.push_back(std::move(operation));
      continue;
    }
    for (const Change& change : operation) SetEntry(&change.folder->durable_entries, change);
  }
  names_ = std::move(rest);
  return absl::OkStatus();
}

inline absl::Status FaultyEnv::Remove(const std::string& path, bool folder) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("remove", path)) return Fail(error, "remove", path);
  const InodePtr inode = Walk(path);
  if (inode == nullptr) return Fail(ENOENT, "remove", path);
  if (inode->folder != folder) return Fail(folder ? ENOTDIR : EISDIR, "remove", path);
  if (!inode->entries.empty()) return Fail(ENOTEMPTY, "remove", path);
  Apply({{Parent(path), engine::BaseName(path), nullptr}});
  return absl::OkStatus();
}

inline absl::StatusOr<std::vector<std::string>> FaultyEnv::List(const std::string& path) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("list", path)) return Fail(error, "list", path);
  const InodePtr inode = Walk(path);
  if (inode == nullptr || !inode->folder) return Fail(ENOENT, "list", path);
  std::vector<std::string> names;
  for (const auto& [name, entry] : inode->entries) names.push_back(name);
  return names;
}

inline absl::StatusOr<engine::FileStat> FaultyEnv::Stat(const std::string& path, bool) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (int error = Enter("stat", path)) return Fail(error, "look at", path);
  const InodePtr inode = Walk(path);
  if (inode == nullptr) return Fail(ENOENT, "look at", path);
  using Kind = engine::FileStat::Kind;
  return engine::FileStat{inode->folder ? Kind::kFolder : Kind::kFile,
                          static_cast<int64_t>(inode->data.size())};
}

inline std::unique_ptr<FaultyEnv> FaultyEnv::Restart(Loss loss, uint64_t seed) const {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  std::mt19937_64 random(seed);
  const auto survives = [&] {
    return loss == Loss::kNothing || loss == Loss::kTornSector ||
           (loss == Loss::kRandom && random() % 2 == 0);
  };

  // Names: what was durable, then the surviving operations in their order.
  std::map<const Inode*, std::map<std::string, InodePtr>> entries;
  const auto entries_of = [&](const Inode* folder) -> std::map<std::string, InodePtr>& {
    const auto [it, is_new] = entries.try_emplace(folder);
    if (is_new) it->second = folder->durable_entries;
    return it->second;
  };
  for (const NameOperation& operation : names_) {
    if (!survives()) continue;
    for (const Change& change : operation) SetEntry(&entries_of(change.folder.get()), change);
  }

  const auto contents = [&](const Inode& file) {
    std::string data = file.durable;
    for (const Write& write : file.pending) {
      if (!survives()) continue;
      if (write.offset < 0) {
        data.clear();
        continue;
      }
      std::string bytes = write.bytes;
      // A torn write: its beginning only.
      if (loss == Loss::kRandom && !bytes.empty() && random() % 4 == 0) {
        bytes.resize(random() % bytes.size());
      }
      if (loss == Loss::kTornSector && &write == &file.pending.back() && !bytes.empty()) {
        bytes.resize(bytes.size() - 1 - random() % std::min(bytes.size(), kSectorBytes));
      }
      const size_t end = static_cast<size_t>(write.offset) + bytes.size();
      if (data.size() < end) data.resize(end, '\0');
      data.replace(static_cast<size_t>(write.offset), bytes.size(), bytes);
    }
    return data;
  };

  std::map<const Inode*, InodePtr> copies;
  const auto copy = [&](const auto& self, const InodePtr& inode) -> InodePtr {
    if (const auto it = copies.find(inode.get()); it != copies.end()) return it->second;
    InodePtr result = NewInode(inode->folder);
    copies[inode.get()] = result;
    if (inode->folder) {
      const std::map<std::string, InodePtr> children = entries_of(inode.get());
      for (const auto& [name, child] : children) result->entries[name] = self(self, child);
      result->durable_entries = result->entries;
    } else {
      result->data = contents(*inode);
      result->durable = result->data;
    }
    return result;
  };
  auto env = std::make_unique<FaultyEnv>();
  env->root_ = copy(copy, root_);
  env->ids_ = ids_ + 1000;
  env->now_ = now_;
  return env;
}

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_FAULTY_ENV_H_
