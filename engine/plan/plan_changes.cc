#include "engine/plan/plan_changes.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qlora::engine {
namespace {

class Trials {
 public:
  Trials(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
         const MachineRates& rates, const PlanLimits& limits)
      : spec_(spec), options_(options), device_(device), rates_(rates), limits_(limits) {
    PlanLimits unlimited = limits;
    unlimited.memory_bytes = INT64_MAX;
    unlimited.host_bytes.reset();
    job_seconds_ =
        SecondsPerToken(BestPlan(spec, options, device, rates, unlimited), options.train.tokens);
  }

  template <class Edit>
  void Try(const std::string& change, Edit&& edit) {
    RecordOptions options = options_;
    PlanLimits limits = limits_;
    edit(&options, &limits);
    const Plan plan = BestPlan(spec_, options, device_, rates_, limits);
    if (!Fits(plan, limits_)) return;
    changes_.push_back(
        {change, plan.total_bytes, SecondsPerToken(plan, options.train.tokens) / job_seconds_});
  }

  std::vector<PlanChange> Take() {
    std::stable_sort(
        changes_.begin(), changes_.end(),
        [](const PlanChange& a, const PlanChange& b) { return a.relative_time < b.relative_time; });
    return std::move(changes_);
  }

 private:
  // Of a micro-batch: how many of them make a step is another field's choice.
  static double SecondsPerToken(const Plan& plan, int64_t tokens) {
    return plan.micro_batch_seconds / double(tokens);
  }

  const ModelSpec& spec_;
  const RecordOptions& options_;
  const kernels::Device& device_;
  const MachineRates& rates_;
  const PlanLimits& limits_;
  double job_seconds_ = 0;
  std::vector<PlanChange> changes_;
};

// The largest n in [1, most] for which `fits` holds, which it does up to some n; 0 for none.
int64_t Largest(int64_t most, const std::function<bool(int64_t)>& fits) {
  int64_t low = 0, high = most;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

bool FitsWith(const ModelSpec& spec, RecordOptions options, const kernels::Device& device,
              const PlanLimits& limits, int64_t rows, int64_t tokens) {
  options.train = {.tokens = rows * tokens, .documents = rows, .trained_rows = rows * tokens};
  options.storage.rope_positions = std::max(options.storage.rope_positions, tokens);
  // Rates do not matter: the plan gives up memory in a fixed order.
  return Fits(BestPlan(spec, options, device, {.matmul_flops = 1, .memory_bytes = 1}, limits),
              limits);
}

}  // namespace

std::string Describe(const PlanChange& change) {
  return absl::StrFormat("%s (%s, %.2f times the time for a token)", change.change,
                         FormatBytes(change.bytes), change.relative_time);
}

std::vector<PlanChange> FittingChanges(const ModelSpec& spec, const RecordOptions& options,
                                       const kernels::Device& device, const MachineRates& rates,
                                       const PlanLimits& limits) {
  if (!options.storage.training) return {};
  Trials trials(spec, options, device, rates, limits);
  if (limits.recompute != proto::Recompute::AUTO) {
    trials.Try("training.recompute: AUTO",
               [](RecordOptions*, PlanLimits* l) { l->recompute = proto::Recompute::AUTO; });
  }
  for (const int64_t part : {2, 4, 8}) {
    trials.Try(absl::StrCat("1/", part,
                            " of the tokens per micro-batch: lower data.max_length or "
                            "training.per_device_train_batch_size"),
               [part](RecordOptions* o, PlanLimits* l) {
                 for (int64_t* n : {&o->train.tokens, &o->train.trained_rows})
                   *n = std::max<int64_t>(*n / part, 1);
                 l->recompute = proto::Recompute::AUTO;
               });
  }
  if (options.storage.mode == proto::Mode::LORA) {
    trials.Try("mode: QLORA",
               [](RecordOptions* o, PlanLimits*) { o->storage.mode = proto::Mode::QLORA; });
  }
  if (options.storage.ranks > 1 && !options.storage.shard_states) {
    trials.Try("parallel.shard_states: true",
               [](RecordOptions* o, PlanLimits*) { o->storage.shard_states = true; });
  }
  if (options.storage.ranks > 1 && !options.storage.shard_base &&
      options.storage.mode != proto::Mode::FULL) {
    trials.Try("parallel.shard_states: true and parallel.shard_base: true",
               [](RecordOptions* o, PlanLimits*) {
                 o->storage.shard_states = o->storage.shard_base = true;
               });
  }
  if (!limits.paging.allowed) {
    trials.Try("training.optim: PAGED_ADAMW_32BIT",
               [](RecordOptions*, PlanLimits* l) { l->paging.allowed = true; });
  }
  if (!options.storage.eight_bit_states) {
    trials.Try("training.optim: PAGED_ADAMW_8BIT", [](RecordOptions* o, PlanLimits* l) {
      o->storage.eight_bit_states = l->paging.allowed = true;
    });
  }
  if (limits.paging.budget_bytes.has_value()) {
    trials.Try("training.paged_states_budget removed",
               [](RecordOptions*, PlanLimits* l) { l->paging.budget_bytes.reset(); });
  }
  if (options.storage.pending_gradients > 0) {
    trials.Try("training.gradient_sum: SEQUENTIAL",
               [](RecordOptions* o, PlanLimits*) { o->storage.pending_gradients = 0; });
  }
  return trials.Take();
}

int64_t LargestSequence(const ModelSpec& spec, const RecordOptions& options,
                        const kernels::Device& device, const PlanLimits& limits, int64_t rows,
                        int64_t most) {
  return Largest(
      most, [&](int64_t tokens) { return FitsWith(spec, options, device, limits, rows, tokens); });
}

int64_t LargestBatch(const ModelSpec& spec, const RecordOptions& options,
                     const kernels::Device& device, const PlanLimits& limits, int64_t tokens,
                     int64_t most) {
  return Largest(
      most, [&](int64_t rows) { return FitsWith(spec, options, device, limits, rows, tokens); });
}

}  // namespace qlora::engine
