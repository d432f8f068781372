// The job's gates against what a run measured.

#ifndef QLORA_ENGINE_COMMANDS_GATES_H_
#define QLORA_ENGINE_COMMANDS_GATES_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/report/console.h"
#include "proto/job.pb.h"
#include "proto/run_state.pb.h"

namespace qlora::engine {

// What a command has measured of what gates are about; none: it does not measure that.
struct GateMetrics {
  std::optional<double> eval_loss_increase;  // nats per token
  std::optional<double> exact_match;         // share
  std::optional<double> kl;                  // mean, nats per token
};

// Of a training run: the evaluation of its result (the last, or the best checkpoint's where that is
// the result) against the one before training. NaN for what should have been measured and was not:
// a gate does not pass by that.
GateMetrics TrainingMetrics(const proto::RunState& state, bool best_is_result);

struct GateResult {
  std::string field;  // "gates.max_kl"
  double measured = 0, limit = 0;
  bool passed = false;
};

// A result for each gate of the job that has a metric, in the order of the fields. A metric that is
// not finite passes nothing.
std::vector<GateResult> CheckGates(const proto::Gates& gates, const GateMetrics& metrics);

// "gates.max_kl passed: 0.0123, at most 0.05".
std::string DescribeGate(const GateResult& result);
// A line for each that was missed.
std::vector<std::string> MissedGates(absl::Span<const GateResult> results);

// CheckGates: says which passed, and returns the lines of those that were missed.
std::vector<std::string> ReportGates(const proto::Gates& gates, const GateMetrics& metrics,
                                     Console* console);

// GateMissedError with these lines, and that the results are there if the command `writes` some; OK
// where there are none.
absl::Status GateStatus(absl::Span<const std::string> missed, bool writes = true);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_GATES_H_
