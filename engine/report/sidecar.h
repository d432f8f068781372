// qlora_run.json beside the adapter: what it was made from, so that a result can be told from its
// likeness.

#ifndef QLORA_ENGINE_REPORT_SIDECAR_H_
#define QLORA_ENGINE_REPORT_SIDECAR_H_

#include <string>

#include "absl/status/status.h"
#include "engine/plan/plan.h"
#include "engine/setup/setup.h"
#include "proto/run_state.pb.h"

namespace qlora::engine {

inline constexpr char kSidecarFile[] = "qlora_run.json";

// Of the training steps that this process made, without evaluations and checkpoints.
struct TrainSpeed {
  int64_t tokens = 0;  // trained on or not
  double seconds = 0;
  double predicted_seconds = 0;  // by the plan, for the same micro-batches

  double TokensPerSecond() const { return double(tokens) / seconds; }
  double PredictedTokensPerSecond() const { return double(tokens) / predicted_seconds; }
  // "1,234 tokens/s; the plan had predicted 1,500, 22 % more".
  std::string Describe() const;
};

// qlora_run.json in the output folder: hashes of base, data and job, versions, trained share,
// sizes, plan and measured speed.
absl::Status WriteSidecar(const Setup& setup, const Plan& plan, const proto::RunState& state,
                          const TrainSpeed& speed);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_SIDECAR_H_
