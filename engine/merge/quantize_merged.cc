#include "engine/merge/quantize_merged.h"

#include "engine/model/load_weights.h"
#include "engine/model/prequantized.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::Status QuantizeMerged(const Setup& setup, const ShardedModel& merged, const FileMaker& make,
                            const Progress& progress) {
  RecordOptions options;
  options.storage = setup.record.storage;
  options.storage.lora = {};
  options.kernels = setup.record.kernels;
  ModelSpec spec = setup.spec;
  spec.prequantized = false;
  PlanLimits limits = setup.limits;
  limits.loading_bytes =
      LoadingBytes(&merged, spec, options.storage, *setup.device, /*writes_cache=*/true);
  absl::StatusOr<Plan> plan = MakePlan(spec, options, *setup.device, setup.rates, limits);
  if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
  absl::StatusOr<std::unique_ptr<Execution>> execution =
      Execution::Create(*plan, setup.device.get());
  if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
  if (absl::Status s = LoadWeights(merged, execution->get(), progress); !s.ok()) return s;
  return WriteQuantizedFiles(setup.env, make, merged, execution->get(),
                             {.with_model_files = true, .progress = progress});
}

}  // namespace qlora::engine
