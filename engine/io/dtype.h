// Element types as safetensors names them, with their sizes and the order the format's writer sorts
// by.
#ifndef QLORA_ENGINE_IO_DTYPE_H_
#define QLORA_ENGINE_IO_DTYPE_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// In the order of the Rust implementation's enum: its writer puts later ones first in the file.
enum class Dtype : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// "BF16" and so on.
absl::string_view DtypeName(Dtype dtype);
std::optional<Dtype> DtypeFromName(absl::string_view name);
// Bits of one element: 4 and 6 for the packed types, else a multiple of 8.
int DtypeBits(Dtype dtype);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_DTYPE_H_
