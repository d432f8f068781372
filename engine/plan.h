// The plan: every byte of a run before one is allocated, what is recomputed, and how long a step
// should take.

#ifndef QLORA_ENGINE_PLAN_H_
#define QLORA_ENGINE_PLAN_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/placement.h"
#include "engine/rates.h"
#include "engine/record/record.h"
#include "engine/rematerialize.h"
#include "proto/job.pb.h"

namespace qlora::engine {

struct PlanItem {
  std::string name;
  int64_t bytes = 0;
};

struct PlanLimits {
  int64_t memory_bytes = 0;   // what the run may use
  std::string memory_source;  // "memory_limit" or "this machine's memory": for messages
  proto::Recompute::Value recompute = proto::Recompute::AUTO;
  // What loading needs before the first piece runs; it shares memory with activations.
  int64_t loading_bytes = 0;
  // Memory beside the program's buffers: the process itself, data, staging.
  std::vector<PlanItem> other;
};

// How far recomputation goes: candidates of all levels below `level` in every layer, and of `level`
// itself in the first `layers`. Level names: "norms and activations", "gate and up", "query, key,
// value", "whole layer".
struct RecomputeChoice {
  int level = 0;
  int64_t layers = 0;
};
std::string Describe(const RecomputeChoice& choice, int64_t layers);

struct Plan {
  RecordedRun run;
  Placement placement;
  RecomputeChoice recompute;
  RecomputeCost recompute_cost;  // per micro-batch
  std::vector<PlanItem> items;   // a line per class of memory, largest first
  int64_t total_bytes = 0;

  // Seconds, by the ops' own counts and the machine's measured rates. 0 for what the run has not.
  double micro_batch_seconds = 0;
  double update_seconds = 0;
  double eval_batch_seconds = 0;
};

// Records the run and, with AUTO, recomputes as little as fits. ResourceExhausted, with the three
// largest items and what would make it fit, where nothing does.
absl::StatusOr<Plan> MakePlan(const ModelSpec& spec, const RecordOptions& options,
                              const kernels::Device& device, const MachineRates& rates,
                              const PlanLimits& limits);

// The table of a plan as text.
std::string PlanTable(const Plan& plan, const PlanLimits& limits);

// "1.5 GiB", "320 MiB", "12.0 KiB".
std::string FormatBytes(int64_t bytes);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_H_
