#include "kernels/cuda/planned_card.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/linear_table.h"
#include "kernels/cuda/rms_norm_products_layout.h"
#include "kernels/cuda/workspace.h"

namespace qlora::kernels::cuda {
namespace {

// Of one block, by compute capability [CUDA C++ Programming Guide, table of technical
// specifications].
int64_t SharedBytesOf(const gpu::Properties& card) {
  const bool is_small = card.major == 12 || (card.major == 8 && card.minor != 0 && card.minor != 7);
  return (is_small ? 99 : card.major == 8 ? 163 : 227) * int64_t{1024};
}

class Planned : public Device {
 public:
  explicit Planned(gpu::Properties card) : card_(std::move(card)) {
    card_.shared_bytes = SharedBytesOf(card_);
    info_.name = absl::StrCat(card_.name, " (by plan)");
    info_.memory_bytes = card_.memory_bytes;
  }

  const DeviceInfo& info() const override { return info_; }
  int64_t WorkspaceBytes(const Op& op) const override { return cuda::WorkspaceBytes(op, card_); }
  std::vector<LinearVariant> Variants(const Op& op) const override {
    return TableVariants(op, card_, /*has_library=*/true);
  }
  int64_t TailColumns(const Op& op) const override { return TailColumnsOf(op); }
  int64_t FirstProductRank(const Op& op) const override { return FirstProductRankOf(op, card_); }
  int64_t PrivateBytes() const override { return 0; }

  absl::StatusOr<Buffer> Allocate(int64_t) override { return NotHere(); }
  absl::StatusOr<std::unique_ptr<PagedMemory>> AllocatePaged(const PagedShape&) override {
    return NotHere();
  }
  absl::StatusOr<std::unique_ptr<Piece>> Prepare(std::vector<Op>) override { return NotHere(); }
  absl::Status Stage(void*, const void*, int64_t) override { return NotHere(); }
  absl::Status CopyIn(void*, const void*, int64_t) override { return NotHere(); }
  absl::Status CopyOut(void*, const void*, int64_t) override { return NotHere(); }
  absl::Status Synchronize() override { return NotHere(); }

 private:
  absl::Status NotHere() const {
    return absl::UnimplementedError(absl::StrCat(info_.name, " is there for plans only"));
  }

  gpu::Properties card_;
  DeviceInfo info_;
};

}  // namespace

std::unique_ptr<Device> PlannedCard(const gpu::Properties& card) {
  return std::make_unique<Planned>(card);
}

}  // namespace qlora::kernels::cuda
