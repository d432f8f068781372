#include "engine/report/sweep_report.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan.h"
#include "proto/sweep_jobs.h"

namespace qlora::engine {
namespace {

using proto::SweepReport;

bool IsTrained(const SweepReport::Adapter& adapter) { return adapter.not_trained().empty(); }

// Held-out figures of all that were trained can be compared: they are there, and of the same data.
SweepReport::Metric ChooseMetric(const SweepReport& report) {
  std::set<std::string> held_out;
  bool all_exact = true;
  for (const SweepReport::Adapter& adapter : report.adapter()) {
    if (!IsTrained(adapter)) continue;
    if (!adapter.has_eval_loss()) return SweepReport::NONE;
    held_out.insert(adapter.held_out());
    all_exact = all_exact && adapter.has_exact_match();
  }
  if (held_out.size() != 1) return SweepReport::NONE;
  return all_exact ? SweepReport::EXACT_MATCH : SweepReport::LOSS;
}

std::string Shown(double value, SweepReport::Metric metric) {
  return metric == SweepReport::EXACT_MATCH
             ? absl::StrFormat("%.1f %% of answers exact", 100 * value)
             : absl::StrFormat("held-out loss %.4f", value);
}

std::string Verdict(const SweepReport& report, const SweepReport::Adapter& best,
                    const SweepReport::Adapter& smallest) {
  const auto figure = [&](const SweepReport::Adapter& adapter) {
    return absl::StrCat(adapter.name(), ", ",
                        Shown(*MetricOf(adapter, report.metric()), report.metric()));
  };
  std::string text = absl::StrFormat("rank %d is enough: %s, adapter %s", smallest.r(),
                                     figure(smallest), FormatBytes(smallest.adapter_bytes()));
  if (smallest.name() == best.name()) return text + "; it is the best as well";
  return absl::StrCat(text, "; the best is ", figure(best), " (rank ", best.r(), "), ",
                      absl::StrFormat("%.2f %% better; tolerance %.2f %%",
                                      100 * Gain(*MetricOf(smallest, report.metric()),
                                                 *MetricOf(best, report.metric()), report.metric()),
                                      100 * report.tolerance()));
}

}  // namespace

SweepReport::Adapter DescribeAdapter(const std::string& name, const Setup& setup,
                                     const proto::RunState& state) {
  SweepReport::Adapter adapter;
  adapter.set_name(name);
  adapter.set_folder(setup.job.output_dir());
  adapter.set_r(setup.job.lora().r());
  adapter.set_lora_alpha(setup.job.lora().lora_alpha());
  adapter.set_learning_rate(setup.job.training().learning_rate());
  adapter.set_seed(setup.job.seed());
  for (const std::string& suffix : setup.targets.suffixes) adapter.add_target_modules(suffix);
  adapter.set_train_file(setup.job.data().train_file());
  adapter.set_held_out(proto::HeldOutData(setup.job));
  adapter.set_trained_parameters(setup.lora_size.trained_parameters);
  adapter.set_adapter_bytes(setup.lora_size.adapter_bytes);
  adapter.set_steps(state.step());
  adapter.set_total_steps(setup.total_steps);
  adapter.set_trained_tokens(state.trained_tokens());
  const bool keeps_best = setup.job.training().load_best_model_at_end();
  for (const proto::LogRecord& record : state.log_history()) {
    if (record.has_loss()) adapter.set_train_loss(record.loss());
    if (!record.has_eval_loss()) continue;
    SweepReport::Point& point = *adapter.add_eval_history();
    point.set_step(record.step());
    point.set_value(record.eval_loss());
    const bool is_taken =
        !keeps_best || !state.has_best_eval_loss() || record.eval_loss() == state.best_eval_loss();
    if (record.step() == 0 || !is_taken) continue;
    adapter.set_eval_loss(record.eval_loss());
    if (record.has_eval_exact_match()) adapter.set_exact_match(record.eval_exact_match());
  }
  return adapter;
}

std::optional<double> MetricOf(const SweepReport::Adapter& adapter, SweepReport::Metric metric) {
  if (metric == SweepReport::LOSS && adapter.has_eval_loss()) return adapter.eval_loss();
  if (metric == SweepReport::EXACT_MATCH && adapter.has_exact_match()) {
    return adapter.exact_match();
  }
  return std::nullopt;
}

double Gain(double before, double after, SweepReport::Metric metric) {
  if (metric == SweepReport::EXACT_MATCH) return after - before;
  return before == after ? 0 : (before - after) / before;
}

void JudgeSweep(SweepReport* report) {
  for (SweepReport::Adapter& adapter : *report->mutable_adapter()) {
    if (IsTrained(adapter) && adapter.has_eval_loss() && !std::isfinite(adapter.eval_loss())) {
      adapter.set_not_trained("its held-out loss is not finite");
    }
  }
  report->set_metric(ChooseMetric(*report));
  if (report->metric() == SweepReport::NONE) {
    const bool any = std::any_of(report->adapter().begin(), report->adapter().end(), IsTrained);
    report->set_verdict(
        any ? "no verdict on ranks: not all adapters were held against the same held-out data"
            : "no verdict on ranks: no adapter has a result");
    return;
  }
  const SweepReport::Metric metric = report->metric();
  const SweepReport::Adapter* best = nullptr;
  for (const SweepReport::Adapter& adapter : report->adapter()) {
    if (!IsTrained(adapter)) continue;
    if (best == nullptr || Gain(*MetricOf(*best, metric), *MetricOf(adapter, metric), metric) > 0) {
      best = &adapter;
    }
  }
  const SweepReport::Adapter* smallest = best;
  for (SweepReport::Adapter& adapter : *report->mutable_adapter()) {
    if (!IsTrained(adapter)) continue;
    const double behind = Gain(*MetricOf(adapter, metric), *MetricOf(*best, metric), metric);
    adapter.set_good_enough(behind <= report->tolerance());
    if (adapter.good_enough() && adapter.r() < smallest->r()) smallest = &adapter;
  }
  // Of the smallest rank the best.
  for (const SweepReport::Adapter& adapter : report->adapter()) {
    if (!adapter.good_enough() || adapter.r() != smallest->r()) continue;
    if (Gain(*MetricOf(*smallest, metric), *MetricOf(adapter, metric), metric) > 0) {
      smallest = &adapter;
    }
  }
  report->set_best(best->name());
  report->set_smallest(smallest->name());
  report->set_verdict(Verdict(*report, *best, *smallest));
}

std::string SweepText(const SweepReport& report) {
  size_t width = 7;
  for (const SweepReport::Adapter& adapter : report.adapter()) {
    width = std::max(width, adapter.name().size());
  }
  std::string text =
      absl::StrFormat("%-*s  %4s  %9s  %6s  %10s  %9s  %9s  %9s  %7s\n", width, "adapter", "r",
                      "rate", "alpha", "adapter", "steps", "loss", "held out", "exact");
  const auto number = [](bool has, int digits, double value) -> std::string {
    return has ? absl::StrFormat("%.*f", digits, value) : "-";
  };
  for (const SweepReport::Adapter& a : report.adapter()) {
    const std::string note = !IsTrained(a)                   ? absl::StrCat("  ", a.not_trained())
                             : a.name() == report.smallest() ? "  <- enough"
                                                             : "";
    absl::StrAppendFormat(
        &text, "%-*s  %4d  %9.3g  %6g  %10s  %9s  %9s  %9s  %7s%s\n", width, a.name(), a.r(),
        a.learning_rate(), a.lora_alpha(), FormatBytes(a.adapter_bytes()),
        absl::StrCat(a.steps(), "/", a.total_steps()),
        number(a.has_train_loss(), 4, a.train_loss()), number(a.has_eval_loss(), 4, a.eval_loss()),
        number(a.has_exact_match(), 3, a.exact_match()), note);
  }
  return absl::StrCat(text, report.verdict(), "\n");
}

}  // namespace qlora::engine
