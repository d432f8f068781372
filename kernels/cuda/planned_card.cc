#include "kernels/cuda/planned_card.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/linear_table.h"
#include "kernels/cuda/workspace.h"

namespace qlora::kernels::cuda {
namespace {

class Planned : public Device {
 public:
  explicit Planned(gpu::Properties card) : card_(std::move(card)) {
    info_.name = absl::StrCat(card_.name, " (by plan)");
    info_.memory_bytes = card_.memory_bytes;
  }

  const DeviceInfo& info() const override { return info_; }
  int64_t WorkspaceBytes(const Op& op) const override { return cuda::WorkspaceBytes(op, card_); }
  std::vector<LinearVariant> Variants(const Op& op) const override {
    return TableVariants(op, card_, /*has_library=*/true);
  }
  int64_t TailColumns(const Op& op) const override { return TailColumnsOf(op); }
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

  const gpu::Properties card_;
  DeviceInfo info_;
};

}  // namespace

std::unique_ptr<Device> PlannedCard(const gpu::Properties& card) {
  return std::make_unique<Planned>(card);
}

}  // namespace qlora::kernels::cuda
