#include "engine/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/rematerialize.h"

namespace qlora::engine {
namespace {

constexpr const char* kLevelNames[ModelPass::kRecomputeLevels] = {
    "norms and activations", "gate and up", "query, key and value", "whole layers"};

absl::flat_hash_set<BufferId> DroppedBy(const RecomputeChoice& choice, const TrainPieces& train) {
  absl::flat_hash_set<BufferId> dropped;
  for (int level = 0; level <= choice.level && level < ModelPass::kRecomputeLevels; ++level) {
    const auto& layers = train.recompute[level];
    const int64_t count = level < choice.level ? int64_t(layers.size()) : choice.layers;
    for (int64_t layer = 0; layer < count; ++layer) {
      dropped.insert(layers[layer].begin(), layers[layer].end());
    }
  }
  return dropped;
}

class Planner {
 public:
  Planner(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
          const PlanLimits& limits)
      : spec_(spec), options_(options), device_(device), limits_(limits) {}

  Plan With(RecomputeChoice choice) const {
    Plan plan{.run = Record(spec_, options_, device_)};
    plan.recompute = choice;
    if (plan.run.train.has_value() && (choice.level > 0 || choice.layers > 0)) {
      plan.recompute_cost = Rematerialize(&plan.run.program, plan.run.train->micro_batch,
                                          DroppedBy(choice, *plan.run.train));
    }
    plan.placement = PlaceTransients(plan.run.program);
    ListItems(&plan);
    return plan;
  }

  // The least recomputation that fits, or the most there is.
  Plan Fitting() const {
    if (limits_.recompute == proto::Recompute::NONE || !options_.storage.training) return With({});
    if (limits_.recompute == proto::Recompute::FULL) return With(Choice(Choices() - 1));
    Plan none = With({});
    if (none.total_bytes <= limits_.memory_bytes) return none;
    int64_t low = 1, high = Choices() - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (With(Choice(middle)).total_bytes <= limits_.memory_bytes) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return With(Choice(high));
  }

 private:
  int64_t Choices() const { return ModelPass::kRecomputeLevels * spec_.layers + 1; }
  // Choice 0 is none; each next one recomputes in one layer more.
  RecomputeChoice Choice(int64_t i) const {
    if (i == 0) return {};
    return {int((i - 1) / spec_.layers), (i - 1) % spec_.layers + 1};
  }

  void ListItems(Plan* plan) const {
    for (int c = 0; c < kBufferClasses; ++c) {
      const BufferClass buffer_class = BufferClass(c);
      if (buffer_class == BufferClass::kTransient) continue;
      const int64_t bytes = plan->run.program.BytesOf(buffer_class);
      if (bytes > 0) plan->items.push_back({NameOf(buffer_class), bytes});
    }
    const int64_t pieces = plan->placement.bytes;
    plan->placement.bytes = std::max(pieces, limits_.loading_bytes);
    if (plan->placement.bytes > 0) {
      plan->items.push_back({pieces >= limits_.loading_bytes
                                 ? NameOf(BufferClass::kTransient)
                                 : absl::StrCat("loading; later ", FormatBytes(pieces), " of it ",
                                                NameOf(BufferClass::kTransient)),
                             plan->placement.bytes});
    }
    if (device_.PrivateBytes() > 0) {
      plan->items.push_back({"panels of the device's threads", device_.PrivateBytes()});
    }
    for (const PlanItem& item : limits_.other) {
      if (item.bytes > 0) plan->items.push_back(item);
    }
    std::stable_sort(plan->items.begin(), plan->items.end(),
                     [](const PlanItem& a, const PlanItem& b) { return a.bytes > b.bytes; });
    for (const PlanItem& item : plan->items) plan->total_bytes += item.bytes;
  }

  const ModelSpec& spec_;
  const RecordOptions& options_;
  const kernels::Device& device_;
  const PlanLimits& limits_;
};

// The changes of a job that were tried, each with the plan's size under it.
std::string Remedies(const ModelSpec& spec, const RecordOptions& options,
                     const kernels::Device& device, const PlanLimits& limits) {
  std::string text;
  const auto try_with = [&](const char* change, auto&& edit) {
    RecordOptions changed = options;
    PlanLimits changed_limits = limits;
    edit(&changed, &changed_limits);
    const int64_t bytes = Planner(spec, changed, device, changed_limits).Fitting().total_bytes;
    if (bytes <= limits.memory_bytes) {
      absl::StrAppend(&text, "  ", change, " (", FormatBytes(bytes), ")\n");
    }
  };
  if (options.storage.training) {
    if (limits.recompute != proto::Recompute::AUTO) {
      try_with("training.recompute: AUTO",
               [](RecordOptions*, PlanLimits* l) { l->recompute = proto::Recompute::AUTO; });
    }
    for (const int64_t part : {2, 4, 8}) {
      const std::string change =
          absl::StrCat("1/", part,
                       " of the tokens per micro-batch: lower "
                       "data.max_length or training.per_device_train_batch_size");
      try_with(change.c_str(), [part](RecordOptions* o, PlanLimits* l) {
        for (int64_t* n : {&o->train.tokens, &o->train.trained_rows})
          *n = std::max<int64_t>(*n / part, 1);
        l->recompute = proto::Recompute::AUTO;
      });
    }
    if (options.storage.mode == proto::Mode::LORA) {
      try_with("mode: QLORA",
               [](RecordOptions* o, PlanLimits*) { o->storage.mode = proto::Mode::QLORA; });
    }
    if (!options.storage.eight_bit_states) {
      try_with("training.optim: PAGED_ADAMW_8BIT",
               [](RecordOptions* o, PlanLimits*) { o->storage.eight_bit_states = true; });
    }
    if (options.storage.pending_gradients > 0) {
      try_with("training.gradient_sum: SEQUENTIAL",
               [](RecordOptions* o, PlanLimits*) { o->storage.pending_gradients = 0; });
    }
  }
  const int64_t need = Planner(spec, options, device, limits).Fitting().total_bytes;
  absl::StrAppend(&text, "  a memory limit of ", FormatBytes(need), " (", need, " bytes)\n");
  return text;
}

}  // namespace

std::string FormatBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = double(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) value /= 1024, ++unit;
  return absl::StrFormat(unit == 0    ? "%.0f %s"
                         : value < 10 ? "%.2f %s"
                                      : "%.1f %s",
                         value, kUnits[unit]);
}

std::string Describe(const RecomputeChoice& choice, int64_t layers) {
  if (choice.level == 0 && choice.layers == 0) return "nothing is recomputed";
  std::string text = "recomputed in backward:";
  for (int level = 0; level <= choice.level; ++level) {
    const int64_t count = level < choice.level ? layers : choice.layers;
    absl::StrAppend(&text, level == 0 ? " " : "; ", kLevelNames[level], " of ", count, " of ",
                    layers, " layers");
  }
  return text;
}

absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RecordOptions& options,
                              const kernels::Device& device, const MachineRates& rates,
                              const PlanLimits& limits) {
  Plan plan = Planner(spec, options, device, limits).Fitting();
  if (plan.total_bytes > limits.memory_bytes) {
    std::string largest;
    for (size_t i = 0; i < std::min<size_t>(3, plan.items.size()); ++i) {
      absl::StrAppend(&largest, "  ", FormatBytes(plan.items[i].bytes), "  ", plan.items[i].name,
                      "\n");
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "the run needs ", FormatBytes(plan.total_bytes), " and ", limits.memory_source, " allows ",
        FormatBytes(limits.memory_bytes), ". The largest items:\n", largest,
        "Any of these would make it fit:\n", Remedies(spec, options, device, limits)));
  }
  const std::vector<PieceProgram>& pieces = plan.run.program.pieces();
  if (plan.run.train.has_value()) {
    plan.micro_batch_seconds = BoundSeconds(pieces[plan.run.train->micro_batch].ops, rates);
    plan.update_seconds = BoundSeconds(pieces[plan.run.train->finish].ops, rates);
  }
  if (plan.run.eval.has_value()) {
    plan.eval_batch_seconds = BoundSeconds(pieces[plan.run.eval->forward].ops, rates);
  }
  return plan;
}

std::string PlanTable(const Plan& plan, const PlanLimits& limits) {
  std::string text = "memory\n";
  for (const PlanItem& item : plan.items) {
    absl::StrAppendFormat(&text, "  %12s  %s\n", FormatBytes(item.bytes), item.name);
  }
  absl::StrAppendFormat(&text, "  %12s  in all, of %s (%s)\n", FormatBytes(plan.total_bytes),
                        FormatBytes(limits.memory_bytes), limits.memory_source);
  if (plan.run.train.has_value()) {
    absl::StrAppend(&text, "  ", Describe(plan.recompute, plan.run.storage.spec.layers), "\n");
  }
  return text;
}

}  // namespace qlora::engine
