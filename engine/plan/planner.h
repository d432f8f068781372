// What is given up so that a run fits, in a fixed order: see plan.h.

#ifndef QLORA_ENGINE_PLAN_PLANNER_H_
#define QLORA_ENGINE_PLAN_PLANNER_H_

#include <optional>

#include "engine/plan/plan.h"

namespace qlora::engine {

// Plans of one run, which is recorded once for all of them. Their times are not reckoned. What it
// is made of must outlive it.
class Planner {
 public:
  Planner(const ModelSpec& spec, const RecordOptions& options, const kernels::Device& device,
          const PlanLimits& limits)
      : spec_(spec), options_(options), device_(device), limits_(limits) {}

  // Where nothing fits, the smallest plan there is.
  Plan Best();
  // Whether Best() keeps to the limits, which is sooner known.
  bool CanFit();

 private:
  static constexpr int64_t kLevels = ModelPass::kRecomputeLevels;

  bool Fits(const Plan& plan) const { return plan.total_bytes <= limits_.memory_bytes; }
  bool MayPage() const { return limits_.paging.allowed && options_.storage.training; }

  // Choices are numbered: 0 recomputes nothing, each next one recomputes in one layer more and,
  // when all layers are recomputed whole, offloads the input of one more.
  RecomputeChoice Choice(int64_t i) const;
  int64_t FirstChoice() const;
  int64_t LastChoice() const;
  int64_t OffloadChoices() const;

  // Host memory does not count in these.
  std::optional<Plan> Fitting();
  // With the least recomputation that fits, if any does.
  std::optional<Plan> LeastRecomputed(bool paged);
  // With this choice, if it fits.
  std::optional<Plan> TryWith(bool paged, RecomputeChoice choice);
  // `spare`: windows that the device has room for beside the fewest there can be.
  Plan With(bool paged, RecomputeChoice choice, int64_t spare = 0);

  // The run before anything is chosen about it, its states in windows or not.
  const RecordedRun& Recorded(bool paged);
  // What is done, with places for none of it yet.
  Plan Choose(bool paged, RecomputeChoice choice);
  void Place(int64_t spare, Plan* plan) const;
  void ChoosePaging(int64_t spare, Plan* plan) const;
  void Lend(int64_t spare, Plan* plan) const;

  const ModelSpec& spec_;
  const RecordOptions& options_;
  const kernels::Device& device_;
  const PlanLimits& limits_;
  std::optional<RecordedRun> recorded_[2];  // by whether it is paged
};

// Lists everything that takes memory, and the sum, anew; gives the arena room for loading.
void ListItems(const kernels::Device& device, const PlanLimits& limits, Plan* plan);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLANNER_H_
