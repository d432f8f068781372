// The rank report of a sweep: which adapter is best, and the smallest rank that is good enough.

#ifndef QLORA_ENGINE_REPORT_SWEEP_REPORT_H_
#define QLORA_ENGINE_REPORT_SWEEP_REPORT_H_

#include <optional>
#include <string>

#include "engine/setup/setup.h"
#include "proto/run_state.pb.h"
#include "proto/sweep_report.pb.h"

namespace qlora::engine {

// One adapter's line: its settings and what its log says.
proto::SweepReport::Adapter DescribeAdapter(const std::string& name, const Setup& setup,
                                            const proto::RunState& state);

// The figure that adapters are compared by; none where the adapter has none.
std::optional<double> MetricOf(const proto::SweepReport::Adapter& adapter,
                               proto::SweepReport::Metric metric);

// How much better `after` is than `before`: a share of `before`'s loss, or of all answers.
double Gain(double before, double after, proto::SweepReport::Metric metric);

// Whether the adapter has a result; has one that misses a gate; has one that misses none.
bool IsTrained(const proto::SweepReport::Adapter& adapter);
bool MissesGate(const proto::SweepReport::Adapter& adapter);
bool Passes(const proto::SweepReport::Adapter& adapter);

// Chooses the metric, the best, the good enough ones and the smallest of them, and says so in
// `verdict` and `compared_by`. Reads adapters with their gates, and tolerance. A rank's figure is
// that of its best adapter. Exact matches decide only where they tell adapters apart: early in
// training, and for small models, all have 0.
void JudgeSweep(proto::SweepReport* report);

// The table and the verdict as text; as one HTML page with the curve over ranks.
std::string SweepText(const proto::SweepReport& report);
std::string SweepPage(const proto::SweepReport& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_SWEEP_REPORT_H_
