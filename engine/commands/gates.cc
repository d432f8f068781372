#include "engine/commands/gates.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/io/atomic_folder.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr const char* kMaxEvalLossIncrease = "gates.max_eval_loss_increase";
constexpr const char* kMinExactMatch = "gates.min_exact_match";
constexpr const char* kMaxKl = "gates.max_kl";

}  // namespace

GateMetrics TrainingMetrics(const proto::RunState& state, bool best_is_result) {
  const proto::LogRecord *before = nullptr, *after = nullptr;
  for (const proto::LogRecord& record : state.log_history()) {
    if (!record.has_eval_loss()) continue;
    if (record.step() == 0) before = &record;
    const bool is_result = !best_is_result || state.best_checkpoint().empty() ||
                           state.best_checkpoint() == CheckpointName(record.step());
    if (is_result) after = &record;
  }
  constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();
  const bool has_both = before != nullptr && after != nullptr;
  const bool has_exact = after != nullptr && after->has_eval_exact_match();
  return {.eval_loss_increase = has_both ? after->eval_loss() - before->eval_loss() : kNotMeasured,
          .exact_match = has_exact ? after->eval_exact_match() : kNotMeasured};
}

std::vector<GateResult> CheckGates(const proto::Gates& gates, const GateMetrics& metrics) {
  std::vector<GateResult> results;
  // Comparisons that NaN fails.
  if (gates.has_max_eval_loss_increase() && metrics.eval_loss_increase.has_value()) {
    const double limit = gates.max_eval_loss_increase(), found = *metrics.eval_loss_increase;
    results.push_back({kMaxEvalLossIncrease, found, limit, found <= limit});
  }
  if (gates.has_min_exact_match() && metrics.exact_match.has_value()) {
    const double limit = gates.min_exact_match(), found = *metrics.exact_match;
    results.push_back({kMinExactMatch, found, limit, found >= limit});
  }
  if (gates.has_max_kl() && metrics.kl.has_value()) {
    results.push_back({kMaxKl, *metrics.kl, gates.max_kl(), *metrics.kl <= gates.max_kl()});
  }
  return results;
}

std::string DescribeGate(const GateResult& result) {
  if (!std::isfinite(result.measured)) {
    return absl::StrCat(result.field,
                        " missed: ", std::isnan(result.measured) ? "not measured" : "infinite");
  }
  return absl::StrFormat("%s %s: %.4g, at %s %.4g", result.field,
                         result.passed ? "passed" : "missed", result.measured,
                         result.field == kMinExactMatch ? "least" : "most", result.limit);
}

std::vector<std::string> ReportGates(const proto::Gates& gates, const GateMetrics& metrics,
                                     Console* console) {
  const std::vector<GateResult> results = CheckGates(gates, metrics);
  for (const GateResult& result : results) {
    if (result.passed) console->Line(DescribeGate(result));
  }
  return MissedGates(results);
}

std::vector<std::string> MissedGates(absl::Span<const GateResult> results) {
  std::vector<std::string> missed;
  for (const GateResult& result : results) {
    if (!result.passed) missed.push_back(DescribeGate(result));
  }
  return missed;
}

absl::Status GateStatus(absl::Span<const std::string> missed, bool writes) {
  if (missed.empty()) return absl::OkStatus();
  return proto::GateMissedError(absl::StrCat(
      absl::StrJoin(missed, "\n"), writes ? "\nThe results are written all the same" : ""));
}

}  // namespace qlora::engine
