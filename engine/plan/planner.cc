#include "engine/plan/planner.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "engine/model/load_weights.h"
#include "engine/plan/join_updates.h"
#include "engine/plan/lent_slots.h"
#include "engine/plan/lifetimes.h"
#include "engine/plan/rematerialize.h"
#include "engine/step/gather.h"

namespace qlora::engine {
namespace {

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

// The host's own list of what is run. Planning compares up to five copies, a run holds three.
int64_t RecordBytes(const Program& program) {
  constexpr int64_t kCopies = 5;
  int64_t ops = 0;
  for (const PieceProgram& piece : program.pieces()) ops += int64_t(piece.ops.size());
  return kCopies * (ops * int64_t(sizeof(kernels::Op)) +
                    int64_t(program.buffers().size() * sizeof(BufferInfo)));
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

}  // namespace

void ListItems(const kernels::Device& device, const PlanLimits& limits, Plan* plan) {
  plan->items.clear();
  plan->total_bytes = 0;
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
  const int64_t loading = std::max(
      limits.loading_bytes, limits.counts_process ? WriteTrainedBytes(plan->run.storage) : 0);
  plan->placement.bytes = std::max(pieces, loading);
  if (plan->placement.bytes > 0) {
    plan->items.push_back({pieces >= loading
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
  if (limits.counts_process) {
    plan->items.push_back({"the step as recorded", RecordBytes(plan->run.program)});
  }
  for (const PlanItem& item : plan->items) plan->total_bytes += item.bytes;
  if (plan->total_bytes < limits.past_peak_bytes) {
    plan->items.push_back(
        {"held while preparing, given back", limits.past_peak_bytes - plan->total_bytes});
    plan->total_bytes = limits.past_peak_bytes;
  }
  std::stable_sort(plan->items.begin(), plan->items.end(),
                   [](const PlanItem& a, const PlanItem& b) { return a.bytes > b.bytes; });
}

RecomputeChoice Planner::Choice(int64_t i) const {
  if (i == 0) return {};
  if (i > kLevels * spec_.layers) {
    return {int(kLevels - 1), spec_.layers, i - kLevels * spec_.layers + kOffloadSlots};
  }
  return {int((i - 1) / spec_.layers), (i - 1) % spec_.layers + 1};
}

int64_t Planner::FirstChoice() const {
  const bool is_full = limits_.recompute == proto::Recompute::FULL && options_.storage.training;
  return is_full ? kLevels * spec_.layers : 0;
}

int64_t Planner::LastChoice() const {
  if (limits_.recompute == proto::Recompute::NONE || !options_.storage.training) return 0;
  return kLevels * spec_.layers + OffloadChoices();
}

// Fewer layers than there are slots would gain nothing.
int64_t Planner::OffloadChoices() const {
  return limits_.may_offload ? std::max<int64_t>(spec_.layers - kOffloadSlots, 0) : 0;
}

Plan Planner::Best() {
  std::optional<Plan> plan = Fitting();
  return plan ? *std::move(plan) : With(MayPage(), Choice(LastChoice()));
}

// The last choice takes least of the device's memory and most of the host's.
bool Planner::CanFit() {
  const std::optional<Plan> last = TryWith(MayPage(), Choice(LastChoice()));
  if (last && engine::Fits(*last, limits_)) return true;
  const std::optional<Plan> plan = Fitting();
  return plan && engine::Fits(*plan, limits_);
}

std::optional<Plan> Planner::Fitting() {
  if (!MayPage()) return LeastRecomputed(/*paged=*/false);
  const bool has_budget = limits_.paging.budget_bytes.has_value();
  if (!has_budget) {
    std::optional<Plan> whole = TryWith(/*paged=*/false, Choice(FirstChoice()));
    if (whole) return whole;
  }
  std::optional<Plan> plan = LeastRecomputed(/*paged=*/true);
  if (!plan || has_budget) return plan;
  const int64_t left = limits_.memory_bytes - plan->total_bytes;
  if (left < plan->paging.window_bytes) return plan;
  return With(/*paged=*/true, plan->recompute, left / plan->paging.window_bytes);
}

std::optional<Plan> Planner::LeastRecomputed(bool paged) {
  int64_t low = FirstChoice(), high = LastChoice();
  std::optional<Plan> fitting = TryWith(paged, Choice(low));
  if (fitting || low == high) return fitting;
  fitting = TryWith(paged, Choice(high));
  if (!fitting) return fitting;
  ++low;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (std::optional<Plan> plan = TryWith(paged, Choice(middle))) {
      fitting = std::move(plan);
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return fitting;
}

std::optional<Plan> Planner::TryWith(bool paged, RecomputeChoice choice) {
  Plan plan = Choose(paged, choice);
  // Placing takes longest, and seldom more memory than what lives at a time.
  plan.placement.bytes = LeastArenaBytes(plan.run.program);
  ListItems(device_, limits_, &plan);
  if (!Fits(plan)) return std::nullopt;
  Place(/*spare=*/0, &plan);
  if (!Fits(plan)) return std::nullopt;
  return plan;
}

Plan Planner::With(bool paged, RecomputeChoice choice, int64_t spare) {
  Plan plan = Choose(paged, choice);
  Place(spare, &plan);
  return plan;
}

const RecordedRun& Planner::Recorded(bool paged) {
  std::optional<RecordedRun>& run = recorded_[paged];
  if (!run.has_value()) {
    RecordOptions options = options_;
    if (paged) options.storage.state_window_bytes = limits_.paging.window_bytes;
    run = Record(spec_, options, device_);
  }
  return *run;
}

Plan Planner::Choose(bool paged, RecomputeChoice choice) {
  Plan plan{.run = Recorded(paged)};
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
  return plan;
}

void Planner::Place(int64_t spare, Plan* plan) const {
  plan->placement = PlaceTransients(plan->run.program);
  ChoosePaging(spare, plan);
  ListItems(device_, limits_, plan);
}

void Planner::ChoosePaging(int64_t spare, Plan* plan) const {
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
void Planner::Lend(int64_t spare, Plan* plan) const {
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

}  // namespace qlora::engine
