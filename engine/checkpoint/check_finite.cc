#include "engine/checkpoint/check_finite.h"

#include "absl/strings/str_cat.h"
#include "engine/model/element_convert.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::Status CheckFinite(const std::string& name, kernels::DType type,
                         absl::Span<const uint8_t> bytes, int64_t first) {
  const int64_t bad = FirstNonFinite(type, bytes);
  if (bad < 0) return absl::OkStatus();
  return proto::NumbersBadError(
      absl::StrCat(name, " holds NaN or infinity at element ", first + bad,
                   ": it is not saved; the last checkpoint is from before"));
}

}  // namespace qlora::engine
