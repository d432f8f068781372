#include "kernels/cpu/cpu_device.h"

#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/paged_memory.h"

namespace qlora::kernels::cpu {
namespace {

class CpuPiece : public Piece {
 public:
  CpuPiece(std::vector<Op> ops, Context context, double* busy_seconds)
      : ops_(std::move(ops)), context_(context), busy_seconds_(*busy_seconds) {}
  absl::Status Run() override {
    const auto begin = std::chrono::steady_clock::now();
    for (const Op& op : ops_) {
      std::visit([this](const auto& o) { cpu::Run(o, context_); }, op);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    busy_seconds_ += seconds.count();
    return absl::OkStatus();
  }

 private:
  const std::vector<Op> ops_;
  const Context context_;
  double& busy_seconds_;  // the device's
};

class CpuDevice : public Device {
 public:
  CpuDevice(std::unique_ptr<ThreadPool> pool, Isa isa) : pool_(std::move(pool)), isa_(isa) {
    info_.name = absl::StrCat("cpu (", NameOf(isa), ", ", pool_->size(),
                              pool_->size() == 1 ? " thread)" : " threads)");
    info_.memory_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    info_.is_host = true;
  }

  const DeviceInfo& info() const override { return info_; }
  int64_t WorkspaceBytes(const Op& op) const override {
    return std::visit([this](const auto& o) { return cpu::WorkspaceBytes(o, isa_); }, op);
  }
  int64_t PrivateBytes() const override { return pool_->size() * ThreadPool::kScratchBytes; }
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override { return Buffer::CreateHost(bytes); }
  absl::StatusOr<std::unique_ptr<PagedMemory>> AllocatePaged(const PagedShape& shape) override {
    return CreatePagedMemory(shape);
  }
  absl::StatusOr<std::unique_ptr<Piece>> Prepare(std::vector<Op> ops) override {
    return std::make_unique<CpuPiece>(std::move(ops), Context{*pool_, isa_}, &busy_seconds_);
  }
  absl::Status Stage(void* device, const void* host, int64_t bytes) override {
    return CopyIn(device, host, bytes);
  }
  absl::Status CopyIn(void* device, const void* host, int64_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyOut(void* host, const void* device, int64_t bytes) override {
    return CopyIn(host, device, bytes);
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  double BusySeconds() const override { return busy_seconds_; }

 private:
  DeviceInfo info_;
  const std::unique_ptr<ThreadPool> pool_;
  const Isa isa_;
  double busy_seconds_ = 0;
};

int UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateCpuDevice(const CpuOptions& options) {
  if (options.isa > BestIsa()) {
    return absl::InvalidArgumentError(absl::StrCat("this CPU has no ", NameOf(options.isa),
                                                   "; the best it has is ", NameOf(BestIsa())));
  }
  absl::StatusOr<std::unique_ptr<ThreadPool>> pool =
      ThreadPool::Create(options.threads > 0 ? options.threads : UsableCores());
  if (!pool.ok()) return pool.status();
  return std::make_unique<CpuDevice>(*std::move(pool), options.isa);
}

}  // namespace qlora::kernels::cpu
