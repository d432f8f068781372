#include "engine/plan/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan_changes.h"
#include "engine/plan/planner.h"

namespace qlora::engine {
namespace {

constexpr const char* kLevelNames[ModelPass::kRecomputeLevels] = {
    "norms and activations", "gate and up", "query, key and value", "whole layers"};

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

// What `seconds` of work leave over of the time that `bytes` take over the link.
double LinkWait(const MachineRates& rates, int64_t bytes, double seconds) {
  if (rates.link_bytes == 0) return 0;
  return std::max(double(bytes) / rates.link_bytes - seconds, 0.0);
}

void AddTimes(const MachineRates& rates, Plan* plan) {
  const std::vector<PieceProgram>& pieces = plan->run.program.pieces();
  if (plan->run.train.has_value()) {
    const PieceProgram& micro_batch = pieces[plan->run.train->micro_batch];
    const std::vector<kernels::Op>& ops = micro_batch.ops;
    const BoundTime bound = BoundOf(ops, rates);
    plan->micro_batch_memory_seconds = bound.memory;
    // Layer inputs leave during forward and come back during backward.
    const double forward =
        BoundSeconds(absl::MakeConstSpan(ops).first(micro_batch.backward_begin), rates);
    plan->micro_batch_link_seconds = LinkWait(rates, plan->InputsAway(), forward) +
                                     LinkWait(rates, plan->InputsAway(), bound.Seconds() - forward);
    plan->micro_batch_seconds = bound.Seconds() + plan->micro_batch_link_seconds;
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
    // States come while others leave. What memory that activations lend lets come sooner is not
    // taken off.
    plan->update_link_seconds = LinkWait(rates, plan->StatesAway(), plan->update_seconds);
    plan->update_seconds += plan->update_link_seconds;
  }
  if (plan->run.eval.has_value()) {
    plan->eval_batch_seconds = BoundSeconds(pieces[plan->run.eval->forward].ops, rates);
  }
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

std::vector<std::string> DescribeChoices(const Plan& plan) {
  std::vector<std::string> choices = {Describe(plan.recompute, plan.run.storage.spec.layers)};
  if (plan.paging.windows > 0) choices.push_back(DescribePaging(plan));
  if (const int64_t groups = plan.run.train->passes; groups > 1) {
    choices.push_back(
        absl::StrCat("adapters go through the model in ", groups, " groups, one after the other"));
  }
  return choices;
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
  Plan plan = Planner(spec, options, device, limits).Best();
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
    for (const std::string& choice : DescribeChoices(plan)) {
      absl::StrAppend(&text, "  ", choice, "\n");
    }
  }
  return text;
}

}  // namespace qlora::engine
