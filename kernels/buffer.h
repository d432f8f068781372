// Buffer: the one owner of memory. Views borrow from it.

#ifndef QLORA_KERNELS_BUFFER_H_
#define QLORA_KERNELS_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace qlora::kernels {

// Every buffer begins at a multiple of this many bytes: a cache line, and the widest vector.
inline constexpr int64_t kBufferAlignment = 64;
// Bytes from the begin of one buffer to that of the next.
constexpr int64_t BufferBytes(int64_t bytes) { return AlignUp(bytes, kBufferAlignment); }

class Buffer {
 public:
  using Release = void (*)(void* data, int64_t bytes);

  Buffer() = default;
  Buffer(void* data, int64_t bytes, Release release)
      : data_(data), bytes_(bytes), release_(release) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Reset(); }

  // Page-aligned host memory, zeroed by the system. ResourceExhausted where there is none.
  static absl::StatusOr<Buffer> CreateHost(int64_t bytes);

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  void Reset();

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Release release_ = nullptr;
};

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_BUFFER_H_
