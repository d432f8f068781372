// SHA-256 (FIPS 180-4), for the provenance of base, data and job.
#ifndef QLORA_ENGINE_IO_SHA256_H_
#define QLORA_ENGINE_IO_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"

namespace qlora::engine {

class Sha256 {
 public:
  // Uses the machine's SHA instructions where it has them, unless told not to: the results are the
  // same.
  explicit Sha256(bool allow_instructions = true);
  void Update(absl::string_view bytes);
  // The 32-byte digest of all that was given; the object must not be used after.
  std::string Finish();

 private:
  using Compress = void (*)(std::array<uint32_t, 8>* state, const uint8_t* blocks, size_t count);

  Compress compress_;
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_;
  size_t filled_ = 0;
  uint64_t total_ = 0;  // bytes
};

// 64 hex digits.
std::string Sha256Hex(absl::string_view bytes);
// `on_part`, which may be empty, is called behind each part that was read, of 1 MiB.
absl::StatusOr<std::string> Sha256File(Env* env, const std::string& path,
                                       const std::function<void()>& on_part = {});

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_SHA256_H_
