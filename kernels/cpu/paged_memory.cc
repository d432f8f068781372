#include "kernels/cpu/paged_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/buffer.h"
#include "kernels/uninterrupted.h"

namespace qlora::kernels::cpu {
namespace {

// A file that nobody else sees and that is gone with its last use. Not every file system has
// O_TMPFILE: then one with a name, which is taken away at once.
int OpenNameless(const std::string& folder) {
  const int file =
      Uninterrupted([&] { return open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); });
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return file;
  std::string path = folder + "/.paged_XXXXXX";
  const int named = mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) unlink(path.c_str());
  return named;
}

// Resident windows in memory, the others in the file; how pieces reach those is the derived
// class's.
class FileMemory : public PagedMemory {
 public:
  // Owns `file`, −1 where all windows are resident.
  FileMemory(const PagedShape& shape, Buffer resident, int file)
      : PagedMemory(shape), resident_(std::move(resident)), file_(file) {}
  ~FileMemory() override {
    if (file_ >= 0) close(file_);
  }

  static int64_t FileBytes(const PagedShape& shape) {
    return (shape.windows - shape.resident) * shape.window_bytes;
  }

  absl::Status Claim(int64_t) override { return absl::OkStatus(); }
  absl::Status Drop(int64_t w) override { return Evict(w); }

  absl::Status Read(int64_t w, int64_t offset, void* to, int64_t bytes) override {
    if (!IsInMemory(w)) return ReadFile(FileOffset(w) + offset, to, bytes);
    std::memcpy(to, static_cast<uint8_t*>(Address(w)) + offset, bytes);
    return absl::OkStatus();
  }
  absl::Status Write(int64_t w, int64_t offset, const void* from, int64_t bytes) override {
    if (!IsInMemory(w)) return WriteFile(FileOffset(w) + offset, from, bytes);
    std::memcpy(static_cast<uint8_t*>(Address(w)) + offset, from, bytes);
    return absl::OkStatus();
  }

 protected:
  // Whether the window's bytes are at its address and not in the file.
  virtual bool IsInMemory(int64_t w) const { return shape().IsResident(w); }

  void* ResidentAddress(int64_t w) const {
    return static_cast<uint8_t*>(resident_.data()) + w * shape().window_bytes;
  }
  // The system begins to write the window to the disk, or keeps it while there is room.
  void StartWriting(int64_t w) {
    sync_file_range(file_, FileOffset(w), shape().window_bytes, SYNC_FILE_RANGE_WRITE);
  }
  // Past a mapping, whose pages would count as this process's until they are given back.
  absl::Status ReadFile(int64_t offset, void* to, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
      const ssize_t n = Uninterrupted(
          [&] { return pread(file_, static_cast<char*>(to) + done, bytes - done, offset + done); });
      if (n <= 0) return Failed("reading", n);
      done += n;
    }
    return absl::OkStatus();
  }
  absl::Status WriteFile(int64_t offset, const void* from, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
      const ssize_t n = Uninterrupted([&] {
        return pwrite(file_, static_cast<const char*>(from) + done, bytes - done, offset + done);
      });
      if (n <= 0) return Failed("writing", n);
      done += n;
    }
    return absl::OkStatus();
  }
  int64_t FileOffset(int64_t w) const { return (w - shape().resident) * shape().window_bytes; }
  int file() const { return file_; }

 private:
  absl::Status Failed(const char* what, ssize_t result) const {
    return absl::UnknownError(
        absl::StrCat(what, " the file of paged memory in ", shape().folder, ": ",
                     result == 0 ? "it ends too early" : std::strerror(errno)));
  }

  const Buffer resident_;
  const int file_;
};

// Slots are pages of the mapped file, asked for ahead of use and given back after it.
class MappedMemory : public FileMemory {
 public:
  MappedMemory(const PagedShape& shape, Buffer resident, uint8_t* mapped, int file)
      : FileMemory(shape, std::move(resident), file), mapped_(mapped) {}
  ~MappedMemory() override {
    if (mapped_ != nullptr) munmap(mapped_, FileBytes(shape()));
  }

  void* Address(int64_t w) const override {
    return shape().IsResident(w) ? ResidentAddress(w) : mapped_ + FileOffset(w);
  }
  absl::Status Bring(int64_t w) override {
    if (shape().slots > 0) madvise(Address(w), shape().window_bytes, MADV_WILLNEED);
    return absl::OkStatus();
  }
  absl::Status Await(int64_t) override { return absl::OkStatus(); }
  // Pieces have run by now. The pages leave this process at once.
  absl::Status Evict(int64_t w) override {
    if (shape().IsResident(w)) return absl::OkStatus();
    StartWriting(w);
    if (madvise(Address(w), shape().window_bytes, MADV_DONTNEED) != 0) {
      return absl::InternalError(
          absl::StrCat("giving back a window of paged memory: ", std::strerror(errno)));
    }
    return absl::OkStatus();
  }
  absl::Status Reclaim(int64_t) override { return absl::OkStatus(); }

 private:
  uint8_t* const mapped_;
};

// Slots are lent: windows are read into them and written back.
class CopiedMemory : public FileMemory {
 public:
  CopiedMemory(const PagedShape& shape, Buffer resident, int file)
      : FileMemory(shape, std::move(resident), file), there_(shape.slots, -1) {}

  void* Address(int64_t w) const override {
    return shape().IsResident(w) ? ResidentAddress(w) : shape().LentSlot(shape().SlotOf(w));
  }
  absl::Status Bring(int64_t w) override {
    posix_fadvise(file(), FileOffset(w), shape().window_bytes, POSIX_FADV_WILLNEED);
    return absl::OkStatus();
  }
  absl::Status Await(int64_t w) override {
    if (IsInMemory(w)) return absl::OkStatus();
    there_[shape().SlotOf(w)] = w;
    return ReadFile(FileOffset(w), Address(w), shape().window_bytes);
  }
  absl::Status Evict(int64_t w) override {
    if (shape().IsResident(w)) return absl::OkStatus();
    there_[shape().SlotOf(w)] = -1;
    if (absl::Status s = WriteFile(FileOffset(w), Address(w), shape().window_bytes); !s.ok()) {
      return s;
    }
    StartWriting(w);
    return absl::OkStatus();
  }
  absl::Status Reclaim(int64_t) override { return absl::OkStatus(); }

 private:
  bool IsInMemory(int64_t w) const override {
    return shape().IsResident(w) || there_[shape().SlotOf(w)] == w;
  }

  std::vector<int64_t> there_;  // by slot: the window whose bytes it holds, or −1
};

}  // namespace

absl::StatusOr<std::unique_ptr<PagedMemory>> CreatePagedMemory(const PagedShape& shape) {
  absl::StatusOr<Buffer> resident = Buffer::CreateHost(shape.resident * shape.window_bytes);
  if (!resident.ok()) return resident.status();
  const int64_t bytes = FileMemory::FileBytes(shape);
  if (bytes == 0) {
    return std::make_unique<MappedMemory>(shape, *std::move(resident), nullptr, -1);
  }
  const auto refused = [&](const char* what, int error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        what, " ", bytes, " bytes for paged memory in ", shape.folder, ": ", std::strerror(error)));
  };
  const int file = OpenNameless(shape.folder);
  if (file < 0) return refused("opening a file of", errno);
  int error = EINTR;
  while (error == EINTR) error = posix_fallocate(file, 0, bytes);
  if (error != 0) {
    close(file);
    return refused("reserving", error);
  }
  if (shape.IsLent()) return std::make_unique<CopiedMemory>(shape, *std::move(resident), file);
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) {
    error = errno;
    close(file);
    return refused("mapping", error);
  }
  return std::make_unique<MappedMemory>(shape, *std::move(resident), static_cast<uint8_t*>(mapped),
                                        file);
}

}  // namespace qlora::kernels::cpu
