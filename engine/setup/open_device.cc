#include "engine/setup/open_device.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_device.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

absl::StatusOr<std::unique_ptr<kernels::Device>> OpenCpu(const proto::Job& job) {
  kernels::cpu::CpuOptions options{.threads = job.num_threads()};
  if (job.cpu_isa() != proto::CpuIsa::AUTO) {
    options.isa = kernels::cpu::Isa(int(job.cpu_isa()) - int(proto::CpuIsa::PORTABLE));
  }
  absl::StatusOr<std::unique_ptr<kernels::Device>> device = kernels::cpu::CreateCpuDevice(options);
  if (absl::IsResourceExhausted(device.status())) {
    return proto::DoesNotFitError(device.status().message());
  }
  if (!device.ok()) {
    return proto::NoDeviceError(absl::StrCat("cpu_isa: ", device.status().message()));
  }
  return device;
}

}  // namespace

absl::StatusOr<std::unique_ptr<kernels::Device>> OpenJobDevice(const proto::Job& job,
                                                               int local_rank, int local_size,
                                                               std::vector<std::string>* warnings) {
  if (job.device() == proto::DeviceKind::CPU) return OpenCpu(job);
  const bool named = job.device() == proto::DeviceKind::CUDA;
  absl::StatusOr<std::unique_ptr<kernels::Device>> device =
      kernels::cuda::CreateCudaDevice({.ordinal = local_rank});
  if (!device.ok() && named && local_size > 1) {
    return proto::NoDeviceError(absl::StrCat(
        "device: CUDA was asked for, but ", device.status().message(), ". ", local_size,
        " ranks run on this machine, each on a GPU of its own; all must see all its GPUs"));
  }
  if (!device.ok() && named) {
    return proto::NoDeviceError(absl::StrCat("device: CUDA was asked for, but ",
                                             device.status().message(),
                                             " (device: CPU or AUTO runs without a GPU)"));
  }
  if (!device.ok()) {
    if (!absl::IsNotFound(device.status())) {
      warnings->push_back(absl::StrCat("the GPU can't be used, the job runs on the CPU: ",
                                       device.status().message()));
    }
    return OpenCpu(job);
  }
  const kernels::DeviceInfo& info = (*device)->info();
  if (!info.is_qualified) {
    warnings->push_back(absl::StrCat(
        info.name, ": the CUDA kernels have not yet passed their tests on such a card; ",
        named ? "check the results against the CPU's"
              : "the job runs on the CPU (device: CUDA takes the GPU all the same)"));
    if (!named) return OpenCpu(job);
  }
  return device;
}

}  // namespace qlora::engine
