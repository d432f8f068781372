// Sizes of memory as people write them: "8GiB", "500 MB", "1.5GB".
#ifndef QLORA_PROTO_MEMORY_SIZE_H_
#define QLORA_PROTO_MEMORY_SIZE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::proto {

// Bytes in `text`: a decimal number and a unit, B, kB, MB, GB, TB (powers of 1000) or KiB, MiB,
// GiB, TiB (powers of 1024), any case, blanks between them allowed. A fraction of a byte is
// dropped. kInvalidArgument if the unit is missing (8 what?) or unknown, for 0 and for more than
// 2^63 - 1.
absl::StatusOr<int64_t> ParseMemorySize(absl::string_view text);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_MEMORY_SIZE_H_
