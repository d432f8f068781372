#include "engine/commands/sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/commands/commands.h"
#include "engine/commands/gates.h"
#include "engine/commands/train.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/report/report_json.h"
#include "engine/report/sweep_report.h"

namespace qlora::engine {
namespace {

using proto::SweepReport;
using Courses = absl::Span<const std::unique_ptr<Course>>;

SweepReport::Gate GateOf(const GateResult& result) {
  SweepReport::Gate gate;
  gate.set_field(result.field);
  if (!std::isnan(result.measured)) gate.set_measured(result.measured);
  gate.set_limit(result.limit);
  gate.set_passed(result.passed);
  gate.set_text(DescribeGate(result));
  return gate;
}

// Of what was trained in the first `rounds` rounds.
SweepReport ReportOf(const SweepSetup& sweep, Courses courses, int64_t rounds) {
  SweepReport report;
  report.set_tolerance(sweep.job.sweep().tolerance());
  for (size_t i = 0; i < courses.size(); ++i) {
    const Course& course = *courses[i];
    SweepReport::Adapter& adapter = *report.add_adapter();
    adapter = DescribeAdapter(sweep.adapters[i].name, course.setup(), course.state());
    if (!course.failure().ok()) {
      adapter.set_not_trained("its numbers went bad");
    } else if (course.is_active() || sweep.adapters[i].round >= rounds) {
      adapter.set_not_trained("not needed: the ranks before gained no more than the tolerance");
    } else {
      for (const GateResult& result : course.Gates()) *adapter.add_gates() = GateOf(result);
    }
  }
  JudgeSweep(&report);
  return report;
}

// The best figure of a round's adapters.
std::optional<double> BestOf(const SweepSetup& sweep, const SweepReport& report, int64_t round) {
  std::optional<double> best;
  for (size_t i = 0; i < sweep.adapters.size(); ++i) {
    const SweepReport::Adapter& adapter = report.adapter(int(i));
    if (sweep.adapters[i].round != round || !IsTrained(adapter)) continue;
    const std::optional<double> figure = MetricOf(adapter, report.metric());
    if (figure && (!best || Gain(*best, *figure, report.metric()) > 0)) best = figure;
  }
  return best;
}

// Whether all adapters have missed gates so far, or the last round gained more than the tolerance
// over the one before.
bool WantsRound(const SweepSetup& sweep, Courses courses, int64_t next, Console* console) {
  if (next < 2) return true;
  // What an earlier run has left of later rounds has no say.
  const SweepReport report = ReportOf(sweep, courses, next);
  const auto& all = report.adapter();
  const bool any_misses = std::any_of(all.begin(), all.end(), MissesGate);
  if (any_misses && std::none_of(all.begin(), all.end(), Passes)) {
    console->Line("no rank passes the gates yet: raised again");
    return true;
  }
  const std::optional<double> before = BestOf(sweep, report, next - 2);
  const std::optional<double> after = BestOf(sweep, report, next - 1);
  if (!before || !after) return true;
  const double gain = Gain(*before, *after, report.metric());
  const bool wants = gain > report.tolerance();
  console->Line(absl::StrFormat("raising the rank gained %.2f %%, tolerance %.2f %%: %s; %s",
                                100 * gain, 100 * report.tolerance(),
                                wants ? "raised again" : "that is enough", report.compared_by()));
  return wants;
}

absl::Status WriteReport(const SweepSetup& sweep, Courses courses, Console* console) {
  const SweepReport report = ReportOf(sweep, courses, std::numeric_limits<int64_t>::max());
  const std::string text = SweepText(report);
  console->Line(text);
  absl::StatusOr<std::string> json = ReportJson(report);
  if (!json.ok()) return json.status();
  const std::string stem = JoinPath(sweep.job.output_dir(), "sweep_report");
  Env* env = sweep.adapters.front().setup->env;
  for (const auto& [suffix, content] : {std::pair<const char*, std::string>{".txt", text},
                                        {".json", *json},
                                        {".html", SweepPage(report)}}) {
    if (absl::Status s = AtomicWriteFile(env, stem + suffix, content); !s.ok()) {
      return AsInputError(s);
    }
  }
  console->Line(absl::StrCat("report: ", stem, ".html, .json, .txt"));
  return absl::OkStatus();
}

std::string Title(const SweepSetup& sweep) {
  return absl::StrCat("sweep of ", sweep.adapters.size(),
                      " adapters over one base: ", sweep.Names(),
                      "; the first one's model, data and targets:");
}

}  // namespace

absl::Status Sweep(const SweepSetup& sweep, Console* console, StopFlag* stop) {
  Together together;
  for (const SweepSetup::Adapter& adapter : sweep.adapters) {
    together.members.push_back({adapter.setup.get(), adapter.name, adapter.round, adapter.group});
  }
  // Each adapter's own is claimed too; this one is for the report.
  absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
      FolderClaim::Take(sweep.adapters.front().setup->env, sweep.job.output_dir(), console);
  if (!claim.ok()) return claim.status();
  console->Line(Title(sweep));
  together.wants_round = [&](Courses courses, int64_t next) {
    return WantsRound(sweep, courses, next, console);
  };
  together.report = [&](Courses courses) { return WriteReport(sweep, courses, console); };
  return TrainTogether(together, console, stop);
}

absl::Status ShowSweepPlan(const SweepSetup& sweep, Console* console) {
  console->Line(Title(sweep));
  return ShowPlan(sweep.planned(), console);
}

}  // namespace qlora::engine
