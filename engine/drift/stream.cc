#include "engine/drift/stream.h"

#include <utility>

#include "engine/model/load_weights.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<StreamPhase>> StreamPhase::Create(
    const StreamContext& context, int64_t loading_bytes,
    const std::function<RecordedRun(const KernelSelection&)>& record) {
  RecordedRun run = record({});
  if (!context.device->info().is_host) {
    std::vector<std::string> warnings;  // the same as at the job's other programs
    absl::StatusOr<KernelSelection> kernels =
        SelectKernels(run.program.Ops(), context.kernels, {}, context.device, &warnings);
    if (!kernels.ok()) return proto::DoesNotFitError(kernels.status().message());
    run = record(*kernels);
  }
  PlanLimits limits = context.limits;
  limits.loading_bytes = loading_bytes;
  absl::StatusOr<Plan> plan = PlanRecorded(std::move(run), *context.device, limits);
  if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
  return std::unique_ptr<StreamPhase>(new StreamPhase(*std::move(plan), context.device));
}

absl::Status StreamPhase::Open() {
  absl::StatusOr<std::unique_ptr<Execution>> execution = Execution::Create(plan_, &device_);
  if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
  execution_ = *std::move(execution);
  return FillTables(execution_.get());
}

}  // namespace qlora::engine
