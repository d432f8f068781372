#include "engine/commands/doctor.h"

#include <dlfcn.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/io/user_cache.h"
#include "engine/plan/host_memory.h"
#include "engine/plan/plan.h"
#include "engine/plan/rates.h"
#include "engine/report/speed_log.h"
#include "engine/version.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_device.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

class Examination {
 public:
  explicit Examination(Console* console) : console_(*console) {}

  absl::Status Run() {
    Say("engine", absl::StrCat(kEngineVersion, ", built by ", __VERSION__));
    if (absl::Status s = Cpu(); !s.ok()) return s;
    Memory();
    Gpu();
    Libraries();
    Limits();
    return absl::OkStatus();
  }

 private:
  void Say(absl::string_view what, absl::string_view found, absl::string_view field = "") {
    console_.Line(absl::StrFormat("%-12s %s%s%s", what, found,
                                  field.empty() ? "" : "\n             -> ", field));
  }

  absl::Status Cpu() {
    std::string model;
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; model.empty() && std::getline(file, line);) {
      if (!line.starts_with("model name")) continue;
      model = std::string(absl::StripAsciiWhitespace(line.substr(line.find(':') + 1)));
    }
    std::vector<std::string> paths;
    for (const kernels::cpu::Isa isa : kernels::cpu::AvailableIsas()) {
      paths.emplace_back(kernels::cpu::NameOf(isa));
    }
    Say("cpu", model);
    Say("paths", absl::StrJoin(paths, ", "),
        absl::StrCat("cpu_isa: AUTO takes ", kernels::cpu::NameOf(kernels::cpu::BestIsa())));
    absl::StatusOr<std::unique_ptr<kernels::Device>> device = kernels::cpu::CreateCpuDevice({});
    if (!device.ok()) return proto::DoesNotFitError(device.status().message());
    Say("threads", (*device)->info().name, "num_threads: fewer leave cores to others");
    for (const auto& [name, dtype] :
         {std::pair("bf16", kernels::DType::kBf16), std::pair("fp32", kernels::DType::kF32)}) {
      const absl::StatusOr<MachineRates> rates = MeasureRates(**device, dtype);
      if (!rates.ok()) return proto::DoesNotFitError(rates.status().message());
      Say(absl::StrCat("rate ", name),
          absl::StrFormat("%.0f GFLOP/s, memory %.1f GB/s", rates->matmul_flops / 1e9,
                          rates->memory_bytes / 1e9),
          dtype == kernels::DType::kF32 ? "compute_dtype: FP32 is for verification" : "");
    }
    Predictions((*device)->info().name);
    return absl::OkStatus();
  }

  void Predictions(const std::string& device) {
    const std::string folder = UserCacheFolder();
    const std::vector<proto::SpeedRecord> runs = SpeedLog(Env::Default(), folder).Read(device);
    Say("past runs",
        runs.empty() ? "none on this device"
                     : absl::StrFormat("%d, predictions %.0f %% off on average", runs.size(),
                                       100 * MeanError(runs)),
        absl::StrCat("plan shows them; they are kept in ",
                     folder.empty() ? "no folder: HOME is not set" : folder));
  }

  void Memory() {
    Say("memory", absl::StrCat(FormatBytes(AvailableHostMemory()), " can be had"),
        "memory_limit: leave it out and a plan may take all of it");
  }

  void Gpu() {
    const auto device = kernels::cuda::CreateCudaDevice({});
    if (!device.ok()) {
      Say("gpu", absl::StrCat("none: ", device.status().message()), "device: AUTO takes the CPU");
      return;
    }
    const kernels::DeviceInfo& info = (*device)->info();
    Say("gpu", absl::StrCat(info.name, ", ", FormatBytes(info.memory_bytes), " free"),
        info.is_qualified
            ? "device: AUTO takes it"
            : "device: CUDA takes it; AUTO does not before its kernels have passed on "
              "such a card");
  }

  void Libraries() {
    struct Library {
      const char *what, *file, *without;
    };
    constexpr Library kLibraries[] = {
        {"cuda driver", "libcuda.so.1", "no GPU can be used"},
        {"cublasLt", "libcublasLt.so.13",
         "kernel_selection: DEQUANTIZED cannot be had by CUDA 13's"},
        {"nccl", "libnccl.so.2", "several GPUs cannot train together"},
        {"mpi", "libmpi.so.40",
         "several processes cannot train together: apt install openmpi-bin"}};
    for (const Library& library : kLibraries) {
      // It stays open: a library that has begun to run is not safely taken out again.
      void* const handle = dlopen(library.file, RTLD_LAZY | RTLD_LOCAL);
      Say(library.what, absl::StrCat(library.file, handle != nullptr ? " is here" : " is not here"),
          handle != nullptr ? "" : library.without);
    }
  }

  void Limit(absl::string_view what, int resource, absl::string_view field) {
    rlimit limit{};
    if (getrlimit(__rlimit_resource_t(resource), &limit) != 0) return;
    Say(what, limit.rlim_cur == RLIM_INFINITY ? "no limit" : FormatBytes(int64_t(limit.rlim_cur)),
        limit.rlim_cur == RLIM_INFINITY ? "" : field);
  }

  void Limits() {
    Limit("memlock", RLIMIT_MEMLOCK,
          "host memory for paged states and layer inputs of a GPU is page-locked by the driver");
    Limit("file size", RLIMIT_FSIZE,
          "a checkpoint's or the merged model's file above it is an error");
    Limit("memory map", RLIMIT_AS, "a plan above it is refused by the system when it begins");
  }

  Console& console_;
};

}  // namespace

absl::Status Doctor(Console* console) { return Examination(console).Run(); }

}  // namespace qlora::engine
