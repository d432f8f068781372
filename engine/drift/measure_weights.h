// The error of every 4-bit weight of a model under several quantizations, layer by layer.

#ifndef QLORA_ENGINE_DRIFT_MEASURE_WEIGHTS_H_
#define QLORA_ENGINE_DRIFT_MEASURE_WEIGHTS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/drift/model_form.h"
#include "engine/drift/stream.h"
#include "engine/drift/weight_error.h"
#include "engine/lora/targets.h"
#include "engine/progress.h"

namespace qlora::engine {

struct NamedWeightError {
  std::string module;
  WeightError error;
};

// The weight errors of a run that has its whole base loaded in 4 bits from `model`, which holds it
// in 16 or 32; before the first piece runs. Scratch: UnpackWeightBytes of the largest.
absl::StatusOr<std::vector<NamedWeightError>> MeasureLoadedWeights(
    const ShardedModel& model, const WeightErrorOptions& options, Execution* execution,
    const Progress& progress = nullptr);

struct WeightMeasurements {
  std::vector<std::vector<NamedWeightError>> of_form;  // by form: its quantized linears, in order
  // The adapter that starts from the residual of the first form, where it was asked for, and how
  // much of that form's whole Σe² it takes back.
  AdapterWeights residual;
  double residual_captured = 0;
};

struct ResidualOptions {
  LoraTargets targets;  // none: no adapter is made
  double lora_alpha = 0;
  bool use_rslora = false;
  uint64_t seed = 0;
};

// Every form is quantized. Reads the checkpoint once.
absl::StatusOr<WeightMeasurements> MeasureWeights(const StreamContext& context,
                                                  absl::Span<const ModelForm> forms,
                                                  const WeightErrorOptions& options,
                                                  const ResidualOptions& residual,
                                                  const Progress& progress);

WeightError Total(const std::vector<NamedWeightError>& errors);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_MEASURE_WEIGHTS_H_
