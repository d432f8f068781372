// An adapter on the host, by module: for models that pass through memory layer by layer.

#ifndef QLORA_ENGINE_DRIFT_ADAPTER_WEIGHTS_H_
#define QLORA_ENGINE_DRIFT_ADAPTER_WEIGHTS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io/env.h"
#include "engine/lora/targets.h"

namespace qlora::engine {

// y += scaling · B·(A·x) for each module.
struct AdapterWeights {
  struct Factors {
    int64_t in = 0, out = 0;
    std::vector<float> a;  // [r, in]
    std::vector<float> b;  // [out, r]
  };
  int64_t r = 0;
  double lora_alpha = 0;
  bool use_rslora = false;
  std::map<std::string, Factors> modules;  // by "model.layers.0.self_attn.q_proj"

  float Scaling() const;
  // Bytes of all factors.
  int64_t Bytes() const;
};

// A PEFT adapter folder that adapts exactly `modules`, in their shapes; their ranks and scales are
// not looked at. Errors are those of ReadAdapter; an element that is not finite is DataLoss naming
// its tensor.
absl::StatusOr<AdapterWeights> ReadAdapterWeights(Env* env, const std::string& folder,
                                                  absl::Span<const AdaptedModule> modules);

// Writes it as ReadAdapter and lora.init_from take it, fp32. The folder exists.
absl::Status WriteAdapterWeights(Env* env, const std::string& folder, const AdapterWeights& weights,
                                 double lora_dropout, const std::string& base_model);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_ADAPTER_WEIGHTS_H_
