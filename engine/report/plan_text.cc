#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan.h"
#include "engine/report/console.h"
#include "engine/report/plan_output.h"

namespace qlora::engine {
namespace {

using Report = proto::PlanReport;

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

void AppendTime(const Report& report, std::string* text) {
  const Report::Time& time = report.time();
  absl::StrAppendFormat(
      text,
      "time, by %.3g TFLOP/s and %.4g GB/s (%s)\n"
      "  %10.3g s  a step of %s tokens: compute %.3g s, memory %.3g s, communication %.3g s; bound "
      "by %s\n"
      "  %10.4g  tokens/s on %d rank%s\n",
      time.flops_per_second() / 1e12, time.memory_bytes_per_second() / 1e9, time.rates_source(),
      time.step_seconds(), FormatCount(time.tokens_per_step()), time.compute_seconds(),
      time.memory_seconds(), time.communication_seconds(), time.bound(), time.tokens_per_second(),
      report.world_size(), report.world_size() == 1 ? "" : "s");
  if (time.tokens_per_epoch() > 0) {
    absl::StrAppendFormat(text, "  %12s  an epoch of %s tokens; %s the whole run\n",
                          FormatDuration(time.epoch_seconds()),
                          FormatCount(time.tokens_per_epoch()), FormatDuration(time.run_seconds()));
  }
  if (report.has_recorded()) {
    absl::StrAppendFormat(
        text, "  the last run here made %.4g tokens/s, predicted were %.4g: %+.0f %%\n",
        report.recorded().tokens_per_second(), report.recorded().predicted_tokens_per_second(),
        100 * report.recorded().error());
  }
}

void AppendLimits(const Report& report, std::string* text) {
  if (report.largest_sequence() + report.largest_batch() > 0) {
    absl::StrAppendFormat(
        text,
        "what fits\n  %12s  tokens in a sequence at most\n  %12s  rows in a micro-batch at most\n",
        FormatCount(report.largest_sequence()), FormatCount(report.largest_batch()));
  }
  if (report.fits()) return;
  *text += report.changes_size() > 0 ? "changes that make it fit, the cheapest in time first\n"
                                     : "no single change makes it fit\n";
  for (const Report::Change& change : report.changes()) {
    absl::StrAppendFormat(text, "  %8.2f x the time, %s: %s\n", change.relative_time(),
                          FormatBytes(change.bytes()), change.change());
  }
}

void AppendScaling(const Report& report, std::string* text) {
  *text += "ranks (engine/plan/SCALING.md)\n";
  for (const Report::Scale& s : report.scaling()) {
    absl::StrAppendFormat(
        text, "  %6d  %10.3g s a step, %9.3g s of it sums; %10.4g tokens/s, %.0f %%\n", s.ranks(),
        s.step_seconds(), s.communication_seconds(), s.tokens_per_second(), 100 * s.efficiency());
  }
}

void AppendEconomics(const Report::Economics& e, std::string* text) {
  absl::StrAppendFormat(text, "economics\n  %s of %s parameters are trained (%.3g %%)\n",
                        FormatCount(e.trained_parameters()), FormatCount(e.model_parameters()),
                        100.0 * double(e.trained_parameters()) / double(e.model_parameters()));
  for (const Report::Target& target : e.targets()) {
    absl::StrAppendFormat(text, "    %-12s %3d modules, %s parameters (%.3g %%)\n", target.name(),
                          target.modules(), FormatCount(target.parameters()), 100 * target.share());
  }
  if (e.adapter_bytes() > 0) {
    absl::StrAppendFormat(text, "  the adapter is %s, the model in 16 bits %s\n",
                          FormatBytes(e.adapter_bytes()), FormatBytes(e.model_bytes()));
  }
  for (const Report::ModeCost& mode : e.modes()) {
    absl::StrAppendFormat(text, "  %-5s  %12s%s, %8.3g s a step, trains %s, result %s\n",
                          mode.mode(), FormatBytes(mode.device_bytes()),
                          mode.fits() ? "" : " (does not fit)", mode.seconds_per_step(),
                          FormatCount(mode.trained_parameters()), FormatBytes(mode.result_bytes()));
  }
  if (e.prompt_tokens_with() > 0) {
    absl::StrAppendFormat(text, "  a prompt has %.1f tokens with the instruction, %.1f without\n",
                          e.prompt_tokens_with(), e.prompt_tokens_without());
    absl::StrAppendFormat(text, "  saves %.4g tokens and %.4g %s a day\n", e.tokens_saved_per_day(),
                          e.saved_per_day(), e.currency());
  }
  if (e.training_hours() > 0) {
    absl::StrAppendFormat(text, "  training takes %.3g hours of the machine, %.4g %s\n",
                          e.training_hours(), e.training_cost(), e.currency());
  }
  if (e.break_even_days() > 0) {
    absl::StrAppendFormat(text, "  paid back after %.3g days\n", e.break_even_days());
  }
}

}  // namespace

std::string PlanReportText(const Report& report) {
  std::string text =
      absl::StrCat("plan of ", report.model(), ", ", FormatCount(report.parameters()),
                   " parameters, mode ", report.mode(), ", on ", report.device(), "\n");
  AppendMemory(report, &text);
  AppendTime(report, &text);
  AppendLimits(report, &text);
  AppendScaling(report, &text);
  AppendEconomics(report.economics(), &text);
  return text;
}

}  // namespace qlora::engine
