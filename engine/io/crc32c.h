// CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected), as iSCSI, TFRecord and ext4 use it.
// Guards against rot, not malice.
#ifndef QLORA_ENGINE_IO_CRC32C_H_
#define QLORA_ENGINE_IO_CRC32C_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace qlora::engine {

// The CRC of `a` then `b`, given crc = CRC of a. The CRC of nothing is 0. Uses the SSE4.2
// instruction where the machine has it.
uint32_t ExtendCrc32c(uint32_t crc, absl::string_view bytes);
inline uint32_t Crc32c(absl::string_view bytes) { return ExtendCrc32c(0, bytes); }

// The same by table, on every machine: the reference of the test.
uint32_t ExtendCrc32cPortable(uint32_t crc, absl::string_view bytes);

// The form that TFRecord stores, so that a CRC of data that holds CRCs stays strong.
inline uint32_t MaskCrc32c(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }
inline uint32_t UnmaskCrc32c(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8u;
  return (rotated >> 17) | (rotated << 15);
}

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_CRC32C_H_
