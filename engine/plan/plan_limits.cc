#include "engine/plan/plan_limits.h"

#include <algorithm>
#include <cstdlib>

#include "engine/comm/nccl_memory.h"
#include "engine/model/load_weights.h"
#include "engine/plan/host_memory.h"
#include "proto/errors.h"
#include "proto/memory_size.h"

namespace qlora::engine {
namespace {

// What a CUDA context with the kernels and cuBLASLt takes beside a plan; where the card is here, it
// is no longer among its free memory.
constexpr int64_t kContextBytes = int64_t{600} << 20;

// What a run adds to its process: up to 4 MiB of the program's files are first met after the plan,
// files are written through pieces of 1 and 4 MiB, and the allocator rounds up.
constexpr int64_t kMetLaterBytes = int64_t{12} << 20;

// GPUs of a machine where ranks on many are planned.
constexpr int kPlannedLocalRanks = 8;

// What NCCL takes beside the program's buffers, where the job has several ranks.
void AddNccl(const Setup& setup, PlanLimits* limits) {
  const int ranks = setup.world();
  if (ranks < 2) return;
  const int local_ranks = setup.ranks != nullptr ? setup.ranks->control().local_size()
                                                 : std::min(ranks, kPlannedLocalRanks);
  const NcclSettings settings = SettingsOfNccl(std::getenv);
  limits->other.push_back({DescribeNccl(settings), NcclDeviceBytes(ranks, local_ranks, settings)});
  limits->other.push_back({"what is handed from rank to rank", HostExchange::kStagingBytes});
}

// Ranks of one machine share its memory.
int64_t ShareOfMemory(const Setup& setup) {
  return AvailableHostMemory() / (setup.ranks == nullptr ? 1 : setup.ranks->control().local_size());
}

absl::Status ChooseHostMemory(const Setup& setup, PlanLimits* limits) {
  limits->may_offload = true;
  if (!setup.device_is_planned) {
    limits->host_bytes = ShareOfMemory(setup) - ResidentHostMemory();
  } else if (setup.job.plan().has_host_memory()) {
    absl::StatusOr<int64_t> bytes = proto::ParseMemorySize(setup.job.plan().host_memory());
    if (!bytes.ok()) return proto::BadJobError(bytes.status().message());
    limits->host_bytes = *bytes;
  }
  return absl::OkStatus();
}

absl::Status ChoosePaging(const Setup& setup, PlanLimits* limits) {
  const proto::Training& training = setup.job.training();
  PagingLimits& paging = limits->paging;
  paging.allowed = training.optim() == proto::Optimizer::PAGED_ADAMW_32BIT ||
                   training.optim() == proto::Optimizer::PAGED_ADAMW_8BIT;
  if (training.has_paged_states_budget()) {
    absl::StatusOr<int64_t> budget = proto::ParseMemorySize(training.paged_states_budget());
    if (!budget.ok()) return proto::BadJobError(budget.status().message());
    paging.budget_bytes = *budget;
    // A small budget still holds a window that is updated, one that arrives and one that leaves.
    const int64_t pages = *budget / 4 / kernels::kPagedWindowAlignment;
    paging.window_bytes = std::clamp(pages * kernels::kPagedWindowAlignment,
                                     kernels::kPagedWindowAlignment, paging.window_bytes);
  }
  if (!setup.device->info().is_host) return ChooseHostMemory(setup, limits);
  paging.folder = PresentFolder(setup.env, setup.job.output_dir());
  return absl::OkStatus();
}

}  // namespace

std::string PresentFolder(Env* env, const std::string& path) {
  std::string folder = path;
  while (!env->IsFolder(folder) && ParentPath(folder) != folder) folder = ParentPath(folder);
  return folder;
}

absl::StatusOr<PlanLimits> LimitsOf(const Setup& setup, bool writes_cache) {
  PlanLimits limits;
  limits.recompute = setup.job.training().recompute();
  const bool is_host = setup.device->info().is_host;
  limits.memory_bytes = is_host ? ShareOfMemory(setup) : setup.device->info().memory_bytes;
  limits.memory_source = setup.device_is_planned ? "the card's memory"
                         : !is_host              ? "the GPU's free memory"
                         : setup.ranks != nullptr && setup.ranks->control().local_size() > 1
                             ? "this rank's share of this machine's free memory"
                             : "this machine's free memory";
  if (setup.job.has_memory_limit()) {
    absl::StatusOr<int64_t> limit = proto::ParseMemorySize(setup.job.memory_limit());
    if (!limit.ok()) return proto::BadJobError(limit.status().message());
    if (*limit < limits.memory_bytes) {
      limits.memory_bytes = *limit;
      limits.memory_source = "memory_limit";
    }
  }
  if (is_host) {
    limits.other = {
        {"this process: program, tokenizer, data", ResidentHostMemory() + kMetLaterBytes}};
    limits.counts_process = true;
    limits.past_peak_bytes = PeakHostMemory();
  } else if (setup.device_is_planned) {
    limits.other = {{"the driver's context, with kernels and libraries", kContextBytes}};
  }
  if (!is_host) AddNccl(setup, &limits);
  if (absl::Status s = ChoosePaging(setup, &limits); !s.ok()) return s;
  if (!setup.job.has_model_init()) {
    limits.loading_bytes = LoadingBytes(setup.model ? &*setup.model : nullptr, setup.spec,
                                        setup.record.storage, *setup.device, writes_cache);
  }
  return limits;
}

}  // namespace qlora::engine
