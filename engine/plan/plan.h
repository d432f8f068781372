// The plan: every byte of a run before one is allocated, what is recomputed, and how long a step
// should take.

#ifndef QLORA_ENGINE_PLAN_PLAN_H_
#define QLORA_ENGINE_PLAN_PLAN_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/plan/offload.h"
#include "engine/plan/placement.h"
#include "engine/plan/rates.h"
#include "engine/plan/rematerialize.h"
#include "engine/record/record.h"
#include "proto/job.pb.h"

namespace qlora::engine {

struct PlanItem {
  std::string name;
  int64_t bytes = 0;
};

// How optimizer states may be paged.
struct PagingLimits {
  bool allowed = false;                 // the job's optimizer is a paged one
  std::optional<int64_t> budget_bytes;  // on the device; none: what the rest of the plan leaves
  bool may_lend = true;                 // activations may lend them memory: lent_slots.h
  int64_t window_bytes = int64_t{16} << 20;
  std::string folder;  // PagedShape::folder
};

struct PlanLimits {
  int64_t memory_bytes = 0;   // what the run may use
  std::string memory_source;  // "memory_limit" or "this machine's memory": for messages
  proto::Recompute::Value recompute = proto::Recompute::AUTO;
  PagingLimits paging;
  // Whether layer inputs may wait in host memory: not where that is the device's own.
  bool may_offload = false;
  // Host memory for paged states and layer inputs; none: nothing of them lies there.
  std::optional<int64_t> host_bytes;
  // What loading needs before the first piece runs; it shares memory with activations.
  int64_t loading_bytes = 0;
  // Whether `memory_bytes` are of the host, which this process shares with the buffers: what it
  // keeps of the run counts too, and no plan is less than what it has held at its peak.
  bool counts_process = false;
  int64_t past_peak_bytes = 0;
  // Memory beside the program's buffers: the process itself, data, staging.
  std::vector<PlanItem> other;
};

// How far recomputation goes: candidates of all levels below `level` in every layer, and of `level`
// itself in the first `layers`. Level names: "norms and activations", "gate and up", "query, key,
// value", "whole layer". Where that is not enough the inputs of the first `offloaded_layers`
// layers, from which they are recomputed, wait in host memory.
struct RecomputeChoice {
  int level = 0;
  int64_t layers = 0;
  int64_t offloaded_layers = 0;
};
std::string Describe(const RecomputeChoice& choice, int64_t layers);

struct Plan {
  RecordedRun run;
  Placement placement;
  RecomputeChoice recompute;
  RecomputeCost recompute_cost;  // per micro-batch
  kernels::PagedShape paging;    // no windows where the states lie in ordinary memory
  OffloadedBuffers offloaded;
  std::vector<PlanItem> items;  // a line per class of memory, largest first
  int64_t total_bytes = 0;

  // Bytes in host memory beside those of the device: states, and layer inputs.
  int64_t StatesAway() const { return Away(paging); }
  int64_t InputsAway() const { return Away(offloaded.shape); }
  int64_t HostBytes() const { return StatesAway() + InputsAway(); }

  // Seconds, by the ops' own counts and the machine's measured rates. 0 for what the run has not.
  double micro_batch_seconds = 0;
  double micro_batch_memory_seconds = 0;  // of these, in ops that memory bounds
  double micro_batch_link_seconds = 0;    // and waiting for layer inputs from or to host memory
  // Of these, what is spent on computing values again, and on writing 4-bit weights out.
  double recompute_seconds = 0, dequantize_seconds = 0;
  double update_seconds = 0;
  double update_link_seconds = 0;  // of these, waiting for states from or to host memory
  double eval_batch_seconds = 0;

 private:
  static int64_t Away(const kernels::PagedShape& shape) {
    return (shape.windows - shape.resident) * shape.window_bytes;
  }
};

// What it does to fit, a line each: what is recomputed; how the states are paged, with the budget
// of each phase; in how many groups adapters go through the model.
std::vector<std::string> DescribeChoices(const Plan& plan);

// Seconds of a step of so many micro-batches, all full, on one rank.
double StepSeconds(const Plan& plan, int64_t micro_batches);

// Records the run. Where not everything fits, states that may be paged leave the device first: they
// pass through memory that activations lend, or where that has no room through a few windows of
// their own; then, with AUTO, as little is recomputed as makes the rest fit; what is left over
// takes windows back. ResourceExhausted, with the three largest items and what would make it fit,
// where nothing does.
absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RecordOptions& options,
                              const kernels::Device& device, const MachineRates& rates,
                              const PlanLimits& limits);

// The plan of a run that is recorded already, with nothing to choose. ResourceExhausted, with the
// largest items and the limit that would do, where it does not fit.
absl::StatusOr<Plan> PlanRecorded(RecordedRun run, const kernels::Device& device,
                                  const PlanLimits& limits);
// The same without a refusal: where nothing fits, the smallest plan there is.
Plan BestPlan(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
              const MachineRates& rates, const PlanLimits& limits);
// Whether a plan keeps to the limits, of the device and of host memory.
bool Fits(const Plan& plan, const PlanLimits& limits);

// The table of a plan as text.
std::string PlanTable(const Plan& plan, const PlanLimits& limits);

// "1.5 GiB", "320 MiB", "12.0 KiB".
std::string FormatBytes(int64_t bytes);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLAN_H_
