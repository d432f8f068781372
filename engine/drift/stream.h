// What the parts of a comparison run with: models pass through memory in phases (embedding, layers
// one by one, head), each a recorded program with a plan and an execution of its own, so that no
// model has to fit as a whole.

#ifndef QLORA_ENGINE_DRIFT_STREAM_H_
#define QLORA_ENGINE_DRIFT_STREAM_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/plan/plan.h"
#include "engine/step/execution.h"

namespace qlora::engine {

struct StreamContext {
  const ModelSpec* spec = nullptr;
  kernels::Device* device = nullptr;
  PlanLimits limits;
  proto::KernelSelection::Value kernels = proto::KernelSelection::TABLE;
  BatchCapacity capacity;  // of one batch
  int64_t rope_positions = 1;
  int threads = 1;  // of host arithmetic; 0: one per core
};

// A program that is planned at once and gets its memory when its turn comes.
class StreamPhase {
 public:
  // `record` is called once, or twice where the device has a choice of kernels. ResourceExhausted
  // (DoesNotFitError) where it does not fit with `loading_bytes` of scratch.
  static absl::StatusOr<std::unique_ptr<StreamPhase>> Create(
      const StreamContext& context, int64_t loading_bytes,
      const std::function<RecordedRun(const KernelSelection&)>& record);

  const Plan& plan() const { return plan_; }
  kernels::Device& device() const { return device_; }
  // Null while closed.
  Execution* execution() { return execution_.get(); }
  // Allocates and fills the tables of plan().run.storage.
  absl::Status Open();
  void Close() { execution_.reset(); }

 private:
  StreamPhase(Plan plan, kernels::Device* device) : plan_(std::move(plan)), device_(*device) {}

  Plan plan_;
  kernels::Device& device_;
  std::unique_ptr<Execution> execution_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_STREAM_H_
