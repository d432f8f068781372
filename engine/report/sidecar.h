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

// Of the training steps that this process made, without evaluations and checkpoints. Of an adapter
// among others: its own tokens, in the time of all.
struct TrainSpeed {
  int64_t steps = 0;
  int64_t tokens = 0;  // trained on or not
  double seconds = 0;
  double predicted_seconds = 0;  // by the plan, for the same micro-batches

  void Add(int64_t step_tokens, double step_seconds, double step_predicted_seconds) {
    ++steps;
    tokens += step_tokens;
    seconds += step_seconds;
    predicted_seconds += step_predicted_seconds;
  }
  double TokensPerSecond() const { return double(tokens) / seconds; }
  double PredictedTokensPerSecond() const { return double(tokens) / predicted_seconds; }
  // "speed: 1,234 tokens/s; the plan predicted 1,500, 22 % more".
  std::string Describe() const;
};

// qlora_run.json in the output folder: hashes of base, data and job, versions, trained share,
// sizes, plan and measured speed.
absl::Status WriteSidecar(const Setup& setup, const Plan& plan, const proto::RunState& state,
                          const TrainSpeed& speed);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_SIDECAR_H_
