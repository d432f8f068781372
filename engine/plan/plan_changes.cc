#include "engine/plan/plan_changes.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/load_weights.h"
#include "engine/plan/planner.h"
#include "engine/plan/step_time.h"
#include "engine/record/check_size.h"
#include "proto/job_defaults.h"

namespace qlora::engine {
namespace {

struct Edit {
  std::string change;
  std::function<void(RecordOptions*, PlanLimits*)> make;
};

class Trials {
 public:
  Trials(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
         const MachineRates& rates, const PlanLimits& limits, const Network& network)
      : spec_(spec),
        options_(options),
        device_(device),
        rates_(rates),
        limits_(limits),
        network_(network) {
    job_seconds_ = SecondsPerToken(BestPlan(spec, options, device, rates, limits), options);
  }

  // The change that these make together, if it makes the run fit.
  std::optional<PlanChange> Try(absl::Span<const Edit> edits) const {
    RecordOptions options = options_;
    PlanLimits limits = limits_;
    std::string change;
    for (const Edit& edit : edits) {
      edit.make(&options, &limits);
      absl::StrAppend(&change, change.empty() ? "" : " and ", edit.change);
    }
    const Plan plan = BestPlan(spec_, options, device_, rates_, limits);
    if (!Fits(plan, limits_)) return std::nullopt;
    return PlanChange{change, plan.total_bytes, SecondsPerToken(plan, options) / job_seconds_};
  }

 private:
  double SecondsPerToken(const Plan& plan, const RecordOptions& options) const {
    return TimeOfStep(plan, rates_, options.micro_batches)
               .SecondsOn(options.storage.ranks, network_) /
           double(options.micro_batches * options.train.tokens);
  }

  const ModelSpec& spec_;
  const RecordOptions& options_;
  const kernels::Device& device_;
  const MachineRates& rates_;
  const PlanLimits& limits_;
  const Network& network_;
  double job_seconds_ = 0;
};

constexpr int64_t kLeastRank = 8;

// The rank of all modules; 0 where there is none such.
int64_t CommonRank(const StorageOptions& storage) {
  if (storage.lora.size() != 1) return 0;
  const std::vector<AdaptedModule>& modules = storage.lora.front().modules;
  const int64_t rank = modules.front().rank;
  const bool is_common = std::all_of(modules.begin(), modules.end(),
                                     [&](const AdaptedModule& m) { return m.rank == rank; });
  return is_common ? rank : 0;
}

// What can be given up, what costs least in time first. Each means the same beside any other.
std::vector<Edit> EditsOf(const ModelSpec& spec, const RecordOptions& options,
                          const kernels::Device& device, const PlanLimits& limits) {
  const StorageOptions& storage = options.storage;
  std::vector<Edit> edits;
  const auto add = [&](bool is_apt, std::string change, auto make) {
    if (is_apt) edits.push_back({std::move(change), std::move(make)});
  };
  add(!limits.paging.allowed && !storage.eight_bit_states, "training.optim: PAGED_ADAMW_32BIT",
      [](RecordOptions*, PlanLimits* l) { l->paging.allowed = true; });
  add(!limits.paging.allowed || !storage.eight_bit_states, "training.optim: PAGED_ADAMW_8BIT",
      [](RecordOptions* o, PlanLimits* l) {
        o->storage.eight_bit_states = l->paging.allowed = true;
      });
  add(limits.paging.budget_bytes.has_value(), "training.paged_states_budget removed",
      [](RecordOptions*, PlanLimits* l) { l->paging.budget_bytes.reset(); });
  add(storage.pending_gradients > 0, "training.gradient_sum: SEQUENTIAL",
      [](RecordOptions* o, PlanLimits*) { o->storage.pending_gradients = 0; });
  add(storage.ranks > 1 && !storage.shard_states, "parallel.shard_states: true",
      [](RecordOptions* o, PlanLimits*) { o->storage.shard_states = true; });
  add(limits.recompute != proto::Recompute::AUTO, "training.recompute: AUTO",
      [](RecordOptions*, PlanLimits* l) { l->recompute = proto::Recompute::AUTO; });
  for (const int64_t part : {2, 4, 8}) {
    add(options.train.tokens >= part,
        absl::StrCat("1/", part,
                     " of the tokens per micro-batch (data.max_length, "
                     "training.per_device_train_batch_size)"),
        [part, train = options.train](RecordOptions* o, PlanLimits*) {
          o->train.tokens = train.tokens / part;
          o->train.trained_rows = std::max<int64_t>(train.trained_rows / part, 1);
        });
  }
  add(storage.ranks > 1 && !storage.shard_base && storage.mode != proto::Mode::FULL,
      "parallel.shard_base: true",
      [](RecordOptions* o, PlanLimits*) { o->storage.shard_base = true; });
  // Another result, not only another way to it.
  for (int64_t rank = CommonRank(storage) / 2; rank >= kLeastRank; rank /= 2) {
    add(true, absl::StrCat("lora.r: ", rank), [rank](RecordOptions* o, PlanLimits*) {
      for (AdaptedModule& module : o->storage.lora.front().modules) module.rank = rank;
    });
  }
  add(storage.mode != proto::Mode::QLORA, "mode: QLORA",
      [&spec, &device](RecordOptions* o, PlanLimits* l) {
        if (o->storage.lora.empty()) o->storage.lora = {DefaultTargets(spec)};
        o->storage.mode = proto::Mode::QLORA;
        l->loading_bytes =
            std::max(l->loading_bytes, LoadingBytes(nullptr, spec, o->storage, device, false));
      });
  return edits;
}

// Edits together that make the run fit where no single one does: as few of the first as do, then
// without those that the later ones make needless.
std::optional<PlanChange> TryTogether(const Trials& trials, absl::Span<const Edit> all) {
  std::vector<Edit> edits;
  std::optional<PlanChange> fitting;
  for (size_t i = 0; i < all.size() && !fitting; ++i) {
    edits.push_back(all[i]);
    fitting = trials.Try(edits);
  }
  for (size_t i = edits.size(); fitting && i-- > 0;) {
    std::vector<Edit> fewer = edits;
    fewer.erase(fewer.begin() + int64_t(i));
    std::optional<PlanChange> change = trials.Try(fewer);
    if (!change) continue;
    fitting = std::move(change);
    edits = std::move(fewer);
  }
  return fitting;
}

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
  return CheckSize(spec, options).ok() && Planner(spec, options, device, limits).CanFit();
}

}  // namespace

std::string Describe(const PlanChange& change) {
  return absl::StrFormat("%s (%s, %.2f times the time for a token)", change.change,
                         FormatBytes(change.bytes), change.relative_time);
}

LoraTargets DefaultTargets(const ModelSpec& spec) {
  return *ResolveLoraTargets(proto::WithDefaults({}).lora(), WeightRows(spec));
}

std::vector<PlanChange> FittingChanges(const ModelSpec& spec, const RecordOptions& options,
                                       const kernels::Device& device, const MachineRates& rates,
                                       const PlanLimits& limits, const Network& network) {
  if (!options.storage.training) return {};
  const Trials trials(spec, options, device, rates, limits, network);
  const std::vector<Edit> edits = EditsOf(spec, options, device, limits);
  std::vector<PlanChange> changes;
  for (const Edit& edit : edits) {
    if (std::optional<PlanChange> change = trials.Try({edit})) changes.push_back(*change);
  }
  if (changes.empty()) {
    if (std::optional<PlanChange> change = TryTogether(trials, edits)) changes.push_back(*change);
  }
  std::stable_sort(changes.begin(), changes.end(), [](const PlanChange& a, const PlanChange& b) {
    return a.relative_time < b.relative_time;
  });
  return changes;
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
