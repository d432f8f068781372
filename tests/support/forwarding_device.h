// A device that passes everything on to another: what pretended devices of tests are made from.

#ifndef QLORA_TESTS_SUPPORT_FORWARDING_DEVICE_H_
#define QLORA_TESTS_SUPPORT_FORWARDING_DEVICE_H_

#include <memory>
#include <utility>
#include <vector>

#include "kernels/device.h"

namespace qlora::kernels::optest {

class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::unique_ptr<Device> inner) : inner_(std::move(inner)) {}

  const DeviceInfo& info() const override { return inner_->info(); }
  int64_t WorkspaceBytes(const Op& op) const override { return inner_->WorkspaceBytes(op); }
  std::vector<LinearVariant> Variants(const Op& op) const override { return inner_->Variants(op); }
  int64_t TailColumns(const Op& op) const override { return inner_->TailColumns(op); }
  int64_t FirstProductRank(const Op& op) const override { return inner_->FirstProductRank(op); }
  int64_t PrivateBytes() const override { return inner_->PrivateBytes(); }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return inner_->Allocate(bytes); }
  absl::StatusOr<std::unique_ptr<PagedMemory>> AllocatePaged(const PagedShape& shape) override {
    return inner_->AllocatePaged(shape);
  }
  absl::StatusOr<std::unique_ptr<Piece>> Prepare(std::vector<Op> ops) override {
    return inner_->Prepare(std::move(ops));
  }
  absl::Status Stage(void* device, const void* host, int64_t bytes) override {
    return inner_->Stage(device, host, bytes);
  }
  absl::Status CopyIn(void* device, const void* host, int64_t bytes) override {
    return inner_->CopyIn(device, host, bytes);
  }
  absl::Status CopyOut(void* host, const void* device, int64_t bytes) override {
    return inner_->CopyOut(host, device, bytes);
  }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  double BusySeconds() const override { return inner_->BusySeconds(); }

 private:
  const std::unique_ptr<Device> inner_;
};

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_FORWARDING_DEVICE_H_
