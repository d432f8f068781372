#include "quant/spec.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace qlora::quant {

absl::Status QuantSpec::Validate() const {
  if (static_cast<int>(type) > static_cast<int>(QuantType::kInt4)) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantization type: found the number ", static_cast<int>(type),
                     "; allowed are nf4 (0), fp4 (1), fp4_e3m0 (2) and int4 (3)"));
  }
  const bool power_of_two = block_size > 0 && (block_size & (block_size - 1)) == 0;
  if (!power_of_two || block_size < kMinBlockSize || block_size > kMaxBlockSize) {
    return absl::InvalidArgumentError(absl::StrCat(
        "quantization block size: found ", block_size, "; allowed is a power of two from ",
        kMinBlockSize, " to ", kMaxBlockSize, " (64 is usual)"));
  }
  return absl::OkStatus();
}

}  // namespace qlora::quant
