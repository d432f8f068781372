#include "kernels/device.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"

namespace qlora::kernels {

const char* NameOf(LinearVariant variant) {
  switch (variant) {
    case LinearVariant::kFused:
      return "FUSED";
    case LinearVariant::kDequantized:
      return "DEQUANTIZED";
    case LinearVariant::kHopper:
      break;
  }
  return "HOPPER";
}

std::vector<LinearVariant> Device::Variants(const Op&) const { return {LinearVariant::kFused}; }
int64_t Device::TailColumns(const Op&) const { return 0; }
int64_t Device::FirstProductRank(const Op&) const { return 0; }

absl::Status Device::Accept(const Op& op) const {
  return AsksForLibrary(op)
             ? absl::UnimplementedError(absl::StrCat(info().name, " has its own attention only"))
             : absl::OkStatus();
}

absl::Status Device::RunOnce(std::vector<Op> ops) {
  absl::StatusOr<std::unique_ptr<Piece>> piece = Prepare(std::move(ops));
  if (!piece.ok()) return piece.status();
  if (absl::Status status = (*piece)->Run(); !status.ok()) return status;
  return Synchronize();
}

}  // namespace qlora::kernels
