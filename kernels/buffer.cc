#include "kernels/buffer.h"

#include <sys/mman.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace qlora::kernels {

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    release_ = std::exchange(other.release_, nullptr);
  }
  return *this;
}

void Buffer::Reset() {
  if (data_ != nullptr && release_ != nullptr) release_(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

absl::StatusOr<Buffer> Buffer::CreateHost(int64_t bytes) {
  if (bytes < 0) return absl::InvalidArgumentError(absl::StrCat("buffer of ", bytes, " bytes"));
  if (bytes == 0) return Buffer();
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the system refused ", bytes, " bytes of host memory (see ulimit -v)"));
  }
  // Large pages cut the misses of the matmuls' long strides; the system is free to ignore the wish.
  if (bytes >= (4 << 20)) madvise(data, bytes, MADV_HUGEPAGE);
  return Buffer(data, bytes, [](void* p, int64_t n) { munmap(p, n); });
}

}  // namespace qlora::kernels
