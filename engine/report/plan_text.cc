#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan.h"
#include "engine/plan/plan_report.h"
#include "engine/report/console.h"
#include "engine/report/plan_output.h"

namespace qlora::engine {
namespace {

using Report = proto::PlanReport;

// Of all runs on this device, the last ones.
constexpr int kShownRuns = 5;

void AppendMemory(const Report& report, std::string* text) {
  *text += "memory\n";
  for (const Report::Item& item : report.items()) {
    absl::StrAppendFormat(text, "  %12s  %-7s %s\n", FormatBytes(item.bytes()), item.memory(),
                          item.name());
  }
  absl::StrAppendFormat(text, "  %12s  in all, of %s (%s)%s\n", FormatBytes(report.device_bytes()),
                        FormatBytes(report.limit_bytes()), report.limit_source(),
                        report.fits() ? "" : ": DOES NOT FIT");
  if (report.host_bytes() > 0) {
    absl::StrAppendFormat(text, "  %12s  of host memory beside it\n",
                          FormatBytes(report.host_bytes()));
  }
  for (const std::string& choice : report.choices()) absl::StrAppend(text, "  ", choice, "\n");
}

// What predictions on this device have been worth.
void AppendPastRuns(const Report::Time& time, std::string* text) {
  if (time.past_runs().empty()) return;
  absl::StrAppendFormat(
      text, "  predictions of %d run%s on this device were %.0f %% off on average\n",
      time.past_runs_size(), time.past_runs_size() == 1 ? "" : "s", 100 * time.past_error());
  for (int i = std::max(0, time.past_runs_size() - kShownRuns); i < time.past_runs_size(); ++i) {
    const proto::SpeedRecord& run = time.past_runs(i);
    absl::StrAppendFormat(
        text, "    %s, %s parameters, %s: predicted %.4g tokens/s, measured %.4g (%+.0f %%)\n",
        run.model(), FormatCount(run.parameters()), run.mode(), run.predicted_tokens_per_second(),
        run.tokens_per_second(),
        100 * (run.predicted_tokens_per_second() / run.tokens_per_second() - 1));
  }
}

void AppendTime(const Report& report, std::string* text) {
  const Report::Time& time = report.time();
  absl::StrAppendFormat(
      text,
      "time, by %.3g TFLOP/s and %.4g GB/s (%s)\n"
      "  %10.3g s  a step of %s tokens: compute %.3g s, memory %.3g s, %scommunication %.3g s; "
      "bound by %s\n"
      "  %10.4g  tokens/s on %d rank%s\n",
      time.flops_per_second() / 1e12, time.memory_bytes_per_second() / 1e9, time.rates_source(),
      time.speed().step_seconds(), FormatCount(time.tokens_per_step()), time.compute_seconds(),
      time.memory_seconds(),
      time.link_bytes_per_second() == 0
          ? ""
          : absl::StrFormat("host link %.3g s, ", time.link_seconds()),
      time.speed().communication_seconds(), time.bound(), time.speed().tokens_per_second(),
      time.speed().ranks(), time.speed().ranks() == 1 ? "" : "s");
  if (time.tokens_per_epoch() > 0) {
    absl::StrAppendFormat(text, "  %12s  an epoch of %s tokens; %s the whole run\n",
                          FormatDuration(time.epoch_seconds()),
                          FormatCount(time.tokens_per_epoch()), FormatDuration(time.run_seconds()));
  }
  AppendPastRuns(time, text);
}

void AppendLimits(const Report& report, std::string* text) {
  if (report.rows_of_tokens() > 0) {
    absl::StrAppendFormat(text,
                          "what fits\n  longest sequence: %s\n"
                          "  largest micro-batch: %s, of %s tokens each\n",
                          LargestSequenceText(report), LargestBatchText(report),
                          FormatCount(report.rows_of_tokens()));
  }
  if (report.fits()) return;
  *text += report.changes_size() > 0 ? "changes that make it fit, the cheapest in time first\n"
                                     : "no changes that are known make it fit\n";
  for (const Report::Alternative& change : report.changes()) {
    absl::StrAppendFormat(text, "  %8.2f x the time, %s: %s\n", change.relative_time(),
                          FormatBytes(change.device_bytes()), change.change());
  }
}

void AppendScaling(const Report& report, std::string* text) {
  if (report.scaling().empty()) return;
  *text += "ranks (engine/plan/SCALING.md)\n";
  for (const Report::Speed& s : report.scaling()) {
    absl::StrAppendFormat(
        text, "  %6d  %10.3g s a step, %9.3g s of it sums; %10.4g tokens/s, %.0f %%\n", s.ranks(),
        s.step_seconds(), s.communication_seconds(), s.tokens_per_second(), 100 * s.efficiency());
  }
}

void AppendTrained(const Report::Trained& trained, std::string* text) {
  absl::StrAppendFormat(text, "    %-12s %3d modules, %s parameters (%.3g %%), %s\n",
                        trained.name(), trained.modules(), FormatCount(trained.parameters()),
                        100 * trained.share(), FormatBytes(trained.bytes()));
}

void AppendEconomics(const Report::Economics& e, std::string* text) {
  absl::StrAppendFormat(
      text,
      "economics\n  %s parameters are trained (%.3g %% of all): %s; the model in 16 bits: %s\n",
      FormatCount(e.trained().parameters()), 100 * e.trained().share(),
      FormatBytes(e.trained().bytes()), FormatBytes(e.model_bytes()));
  for (const Report::Trained& target : e.targets()) AppendTrained(target, text);
  if (!e.ranks().empty()) *text += "  by rank\n";
  for (const Report::Trained& rank : e.ranks()) AppendTrained(rank, text);
  for (const Report::Alternative& mode : e.modes()) {
    absl::StrAppendFormat(text, "  %-11s  %12s%s, %5.2f x the time, trains %s, result %s\n",
                          mode.change(), FormatBytes(mode.device_bytes()),
                          mode.fits() ? "" : " (does not fit)", mode.relative_time(),
                          FormatCount(mode.trained().parameters()),
                          FormatBytes(mode.trained().bytes()));
  }
  for (const proto::MergedModelReport& merged : e.merged()) {
    absl::StrAppendFormat(text,
                          "  merging into %s took %.3g s, loss %+.4f, when merge last ran here\n",
                          merged.into(), merged.seconds(), merged.loss_increase());
  }
  if (e.prompt_tokens_with() > 0) {
    absl::StrAppendFormat(
        text, "  a prompt has %.1f tokens with the instruction, %.1f without: saves %.1f a call\n",
        e.prompt_tokens_with(), e.prompt_tokens_without(),
        e.prompt_tokens_with() - e.prompt_tokens_without());
  }
  if (!e.prompts_uncounted().empty()) absl::StrAppend(text, "  ", e.prompts_uncounted(), "\n");
  if (e.tokens_saved_per_day() > 0) {
    absl::StrAppendFormat(text, "  saves %.4g tokens a day", e.tokens_saved_per_day());
    if (e.saved_per_day() > 0) {
      absl::StrAppendFormat(text, ", %.4g %s", e.saved_per_day(), e.currency());
    }
    *text += "\n";
  }
  const auto add_training = [&](const char* what, double hours, double cost) {
    if (hours == 0) return;
    absl::StrAppendFormat(text, "  %s %s of a rank's machine", what, FormatDuration(hours * 3600));
    if (cost > 0) absl::StrAppendFormat(text, ", %.4g %s", cost, e.currency());
    *text += "\n";
  };
  add_training("training takes", e.training_hours(), e.training_cost());
  add_training("were it off by as much as past runs here,", e.training_hours_by_past(),
               e.training_cost_by_past());
  if (e.break_even_days() > 0) {
    absl::StrAppendFormat(text, "  paid back after %.3g days\n", e.break_even_days());
  }
}

}  // namespace

std::string LargestSequenceText(const Report& report) {
  return absl::StrCat(
      FormatCount(report.largest_sequence()), " tokens",
      report.largest_sequence() == report.most_tokens() ? ", as many as the model takes" : "");
}

std::string LargestBatchText(const Report& report) {
  return absl::StrCat(FormatCount(report.largest_batch()),
                      report.largest_batch() == 1 ? " row" : " rows",
                      report.largest_batch() >= kMostRows ? " or more" : "");
}

std::string PlanReportText(const Report& report) {
  std::string text = absl::StrCat(
      "plan of ", report.model(), ", ", FormatCount(report.parameters()), " parameters, mode ",
      report.mode(), ", on ", report.device(),
      report.adapters() > 1 ? absl::StrCat(", ", report.adapters(), " adapters together\n") : "\n");
  AppendMemory(report, &text);
  AppendTime(report, &text);
  AppendLimits(report, &text);
  AppendScaling(report, &text);
  AppendEconomics(report.economics(), &text);
  return text;
}

}  // namespace qlora::engine
