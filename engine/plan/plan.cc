#include "engine/plan/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/join_updates.h"
#include "engine/plan/lent_slots.h"
#include "engine/plan/plan_changes.h"
#include "engine/plan/rematerialize.h"
#include "engine/step/gather.h"

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

// The fewest windows on their way: one that is updated, one that arrives, one that leaves.
constexpr int64_t kPagingSlots = 3;

// The shape with room for `places` windows on the device.
kernels::PagedShape ShapeFor(int64_t places, const kernels::PagedShape& shape) {
  kernels::PagedShape result = shape;
  result.slots = places >= shape.windows ? 0 : std::min(places, kPagingSlots);
  result.resident = places >= shape.windows ? shape.windows : places - result.slots;
  return result;
}

// Everything that takes memory, and the sum; gives the arena room for loading.
void ListItems(const kernels::Device& device, const PlanLimits& limits, Plan* plan) {
  for (int c = 0; c < kBufferClasses; ++c) {
    const BufferClass buffer_class = BufferClass(c);
    if (buffer_class == BufferClass::kTransient || buffer_class == BufferClass::kPagedStates ||
        buffer_class == BufferClass::kOffloaded || buffer_class == BufferClass::kGathered) {
      continue;
    }
    const int64_t bytes = plan->run.program.BytesOf(buffer_class);
    if (bytes > 0) plan->items.push_back({NameOf(buffer_class), bytes});
  }
  if (plan->paging.windows > 0) {
    plan->items.push_back({absl::StrCat(NameOf(BufferClass::kPagedStates), ", of ",
                                        FormatBytes(plan->paging.TotalBytes()), " in all"),
                           plan->paging.DeviceBytes()});
  }
  if (plan->offloaded.shape.windows > 0) {
    plan->items.push_back({NameOf(BufferClass::kOffloaded), plan->offloaded.shape.DeviceBytes()});
  }
  const int64_t pieces = plan->placement.bytes;
  plan->placement.bytes = std::max(pieces, limits.loading_bytes);
  if (plan->placement.bytes > 0) {
    plan->items.push_back({pieces >= limits.loading_bytes
                               ? NameOf(BufferClass::kTransient)
                               : absl::StrCat("loading; later ", FormatBytes(pieces), " of it ",
                                              NameOf(BufferClass::kTransient)),
                           plan->placement.bytes});
  }
  if (device.PrivateBytes() > 0) {
    plan->items.push_back({"panels of the device's threads", device.PrivateBytes()});
  }
  for (const PlanItem& item : limits.other) {
    if (item.bytes > 0) plan->items.push_back(item);
  }
  std::stable_sort(plan->items.begin(), plan->items.end(),
                   [](const PlanItem& a, const PlanItem& b) { return a.bytes > b.bytes; });
  for (const PlanItem& item : plan->items) plan->total_bytes += item.bytes;
}

class Planner {
 public:
  Planner(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
          const PlanLimits& limits)
      : spec_(spec), options_(options), device_(device), limits_(limits) {}

  Plan Fitting() const {
    const PagingLimits& paging = limits_.paging;
    if (!paging.allowed || !options_.storage.training) return LeastRecomputed(options_);
    if (!paging.budget_bytes.has_value()) {
      Plan whole = With(options_, limits_.recompute == proto::Recompute::FULL
                                      ? Choice(kLevels * spec_.layers)
                                      : RecomputeChoice{});
      if (Fits(whole)) return whole;
    }
    RecordOptions paged = options_;
    paged.storage.state_window_bytes = paging.window_bytes;
    Plan plan = LeastRecomputed(paged);
    const int64_t left = limits_.memory_bytes - plan.total_bytes;
    if (paging.budget_bytes.has_value() || left < plan.paging.window_bytes) return plan;
    return With(paged, plan.recompute, left / plan.paging.window_bytes);
  }

  bool Fits(const Plan& plan) const { return plan.total_bytes <= limits_.memory_bytes; }

 private:
  // `spare`: windows that the device has room for beside the fewest there can be.
  Plan With(const RecordOptions& options, RecomputeChoice choice, int64_t spare = 0) const {
    Plan plan{.run = Record(spec_, options, device_)};
    plan.recompute = choice;
    if (plan.run.train.has_value() && (choice.level > 0 || choice.layers > 0)) {
      plan.recompute_cost = Rematerialize(&plan.run.program, plan.run.train->micro_batch,
                                          DroppedBy(choice, *plan.run.train));
    }
    if (choice.offloaded_layers > 0) {
      const TrainPieces& train = *plan.run.train;
      plan.offloaded =
          Offload(&plan.run.program, train.micro_batch,
                  absl::MakeConstSpan(train.layer_inputs).first(choice.offloaded_layers));
    }
    GatherAhead(&plan.run.program, plan.run.storage.gathered);
    plan.placement = PlaceTransients(plan.run.program);
    ChoosePaging(spare, &plan);
    ListItems(device_, limits_, &plan);
    return plan;
  }

  // The least recomputation that fits, or the most there is.
  Plan LeastRecomputed(const RecordOptions& options) const {
    if (limits_.recompute == proto::Recompute::NONE || !options.storage.training) {
      return With(options, {});
    }
    const bool full = limits_.recompute == proto::Recompute::FULL;
    int64_t low = full ? kLevels * spec_.layers : 0;
    int64_t high = kLevels * spec_.layers + OffloadChoices();
    Plan least = With(options, Choice(low));
    if (Fits(least) || low == high) return least;
    ++low;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (Fits(With(options, Choice(middle)))) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return With(options, Choice(high));
  }

  void ChoosePaging(int64_t spare, Plan* plan) const {
    const Storage& storage = plan->run.storage;
    if (storage.paged_window_bytes == 0) return;
    kernels::PagedShape shape{.window_bytes = storage.paged_window_bytes,
                              .windows = int64_t(storage.windows.size()),
                              .folder = limits_.paging.folder};
    int64_t places = std::min(kPagingSlots, shape.windows - 1);
    if (limits_.paging.budget_bytes) places = *limits_.paging.budget_bytes / shape.window_bytes;
    // A host's pieces can only reach a window by taking it into memory.
    if (device_.info().is_host) places = std::max<int64_t>(places, 1);
    plan->paging = ShapeFor(places + spare, shape);
    if (limits_.paging.may_lend) Lend(spare, plan);
    JoinUpdates(plan->paging, &plan->run);
  }

  // Slots in the arena instead of slots of their own, where it has room for as many as windows on
  // their way need. A budget counts them too; without one every window that is not resident may
  // have its slot.
  void Lend(int64_t spare, Plan* plan) const {
    kernels::PagedShape& shape = plan->paging;
    const bool counted = limits_.paging.budget_bytes.has_value();
    const int64_t resident = counted ? shape.resident : std::min(spare, shape.windows);
    const int64_t wanted = counted ? shape.slots : shape.windows - resident;
    std::vector<LentSlot> slots = FindLentSlots(plan->run, plan->placement, shape.window_bytes);
    if (wanted == 0 || int64_t(slots.size()) < std::min(wanted, kPagingSlots)) return;
    shape.resident = resident;
    shape.slots = std::min(wanted, int64_t(slots.size()));
    slots.resize(shape.slots);
    shape.page_locked = true;
    for (const LentSlot& slot : slots) shape.lent_offsets.push_back(slot.offset);
    LendSlots(slots, plan->placement, shape.window_bytes, &plan->run);
  }

  static constexpr int64_t kLevels = ModelPass::kRecomputeLevels;
  // Fewer layers than there are slots would gain nothing.
  int64_t OffloadChoices() const {
    return limits_.may_offload ? std::max<int64_t>(spec_.layers - kOffloadSlots, 0) : 0;
  }
  // Choice 0 is none; each next one recomputes in one layer more, and when all layers are
  // recomputed whole, offloads the input of one more.
  RecomputeChoice Choice(int64_t i) const {
    if (i == 0) return {};
    if (i > kLevels * spec_.layers) {
      return {int(kLevels - 1), spec_.layers, i - kLevels * spec_.layers + kOffloadSlots};
    }
    return {int((i - 1) / spec_.layers), (i - 1) % spec_.layers + 1};
  }

  const ModelSpec& spec_;
  const RecordOptions& options_;
  const kernels::Device& device_;
  const PlanLimits& limits_;
};

std::string LargestItems(const Plan& plan) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(3, plan.items.size()); ++i) {
    absl::StrAppend(&text, "  ", FormatBytes(plan.items[i].bytes), "  ", plan.items[i].name, "\n");
  }
  return text;
}

// Bytes that linear ops move only to have their 4-bit weights in 16 bits: read once, written once.
double DequantizedBytes(absl::Span<const kernels::Op> ops) {
  double bytes = 0;
  for (const kernels::Op& op : ops) {
    std::visit(
        [&](const auto& o) {
          if constexpr (requires { o.variant; }) {
            if (o.variant != kernels::LinearVariant::kDequantized) return;
            if (o.base.kind != kernels::LinearBase::Kind::kQuantized) return;
            bytes += kernels::BaseBytes(o.base) +
                     2.0 * double(o.base.out_features) * double(o.base.in_features);
          }
        },
        op);
  }
  return bytes;
}

void AddTimes(const MachineRates& rates, Plan* plan) {
  const std::vector<PieceProgram>& pieces = plan->run.program.pieces();
  if (plan->run.train.has_value()) {
    const std::vector<kernels::Op>& ops = pieces[plan->run.train->micro_batch].ops;
    const BoundTime bound = BoundOf(ops, rates);
    plan->micro_batch_seconds = bound.Seconds();
    plan->micro_batch_memory_seconds = bound.memory;
    std::vector<kernels::Op> again;
    for (const int64_t i : plan->recompute_cost.indices) again.push_back(ops[i]);
    plan->recompute_seconds = BoundSeconds(again, rates);
    plan->dequantize_seconds = DequantizedBytes(ops) / rates.memory_bytes;
    for (const int64_t piece : plan->run.train->finish) {
      plan->update_seconds += BoundSeconds(pieces[piece].ops, rates);
    }
    for (const UpdatePiece& update : plan->run.train->update) {
      plan->update_seconds += BoundSeconds(pieces[update.piece].ops, rates);
    }
  }
  if (plan->run.eval.has_value()) {
    plan->eval_batch_seconds = BoundSeconds(pieces[plan->run.eval->forward].ops, rates);
  }
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
  if (choice.offloaded_layers > 0) {
    absl::StrAppend(&text, "; inputs of ", choice.offloaded_layers, " of ", layers,
                    " layers wait in host memory");
  }
  return text;
}

std::string DescribePaging(const Plan& plan) {
  const kernels::PagedShape& paging = plan.paging;
  std::string text = absl::StrCat("optimizer states in ", paging.windows, " windows of ",
                                  FormatBytes(paging.window_bytes), ": ", paging.resident,
                                  " stay on the device, ", paging.slots, " at a time pass through");
  if (!paging.IsLent()) return text;
  absl::StrAppend(&text, " memory that activations lend; on the device are ",
                  FormatBytes(paging.resident * paging.window_bytes), " in forward");
  for (const Move& move : plan.run.program.pieces()[plan.run.train->micro_batch].moves) {
    if (move.kind != Move::Kind::kLend) continue;
    absl::StrAppend(&text, ", then ",
                    FormatBytes((paging.resident + move.window) * paging.window_bytes));
  }
  return text;
}

double StepSeconds(const Plan& plan, int64_t micro_batches) {
  return double(micro_batches) * plan.micro_batch_seconds + plan.update_seconds;
}

bool Fits(const Plan& plan, const PlanLimits& limits) {
  return plan.total_bytes <= limits.memory_bytes &&
         (!limits.host_bytes || plan.HostBytes() <= *limits.host_bytes);
}

Plan BestPlan(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
              const MachineRates& rates, const PlanLimits& limits) {
  Plan plan = Planner(spec, options, device, limits).Fitting();
  AddTimes(rates, &plan);
  return plan;
}

absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RecordOptions& options,
                              const kernels::Device& device, const MachineRates& rates,
                              const PlanLimits& limits) {
  Plan plan = BestPlan(spec, options, device, rates, limits);
  if (plan.total_bytes > limits.memory_bytes) {
    std::string changes;
    for (const PlanChange& change : FittingChanges(spec, options, device, rates, limits)) {
      absl::StrAppend(&changes, "  ", Describe(change), "\n");
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "the run needs ", FormatBytes(plan.total_bytes), " and ", limits.memory_source, " allows ",
        FormatBytes(limits.memory_bytes), ". The largest items:\n", LargestItems(plan),
        "Any of these would make it fit:\n", changes, "  a memory limit of ",
        FormatBytes(plan.total_bytes), " (", plan.total_bytes, " bytes)\n"));
  }
  if (limits.host_bytes && plan.HostBytes() > *limits.host_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the run wants to keep ", FormatBytes(plan.HostBytes()),
                     " of optimizer states and layer inputs in host memory, which has ",
                     FormatBytes(*limits.host_bytes),
                     " free. A larger memory_limit keeps more of it on the GPU; training.optim: "
                     "PAGED_ADAMW_8BIT "
                     "has states of a quarter, a lower data.max_length smaller layer inputs"));
  }
  return plan;
}

absl::StatusOr<Plan> PlanRecorded(RecordedRun run, const kernels::Device& device,
                                  const PlanLimits& limits) {
  Plan plan{.run = std::move(run)};
  plan.placement = PlaceTransients(plan.run.program);
  ListItems(device, limits, &plan);
  if (plan.total_bytes <= limits.memory_bytes) return plan;
  return absl::ResourceExhaustedError(
      absl::StrCat("needed are ", FormatBytes(plan.total_bytes), " and ", limits.memory_source,
                   " allows ", FormatBytes(limits.memory_bytes), ". The largest items:\n",
                   LargestItems(plan), "A memory limit of ", FormatBytes(plan.total_bytes), " (",
                   plan.total_bytes, " bytes) would do"));
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
    if (plan.paging.windows > 0) absl::StrAppend(&text, "  ", DescribePaging(plan), "\n");
  }
  return text;
}

}  // namespace qlora::engine
