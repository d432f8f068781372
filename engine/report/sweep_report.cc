#include "engine/report/sweep_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/plan.h"
#include "proto/sweep_jobs.h"

namespace qlora::engine {

using proto::SweepReport;

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
  std::string gates;
  for (const SweepReport::Adapter& a : report.adapter()) {
    const std::string note = !IsTrained(a)                   ? absl::StrCat("  ", a.not_trained())
                             : MissesGate(a)                 ? "  misses a gate"
                             : a.name() == report.smallest() ? "  <- enough"
                                                             : "";
    for (const SweepReport::Gate& gate : a.gates()) {
      absl::StrAppend(&gates, a.name(), ": ", gate.text(), "\n");
    }
    absl::StrAppendFormat(
        &text, "%-*s  %4d  %9.3g  %6g  %10s  %9s  %9s  %9s  %7s%s\n", width, a.name(), a.r(),
        a.learning_rate(), a.lora_alpha(), FormatBytes(a.adapter_bytes()),
        absl::StrCat(a.steps(), "/", a.total_steps()),
        number(a.has_train_loss(), 4, a.train_loss()), number(a.has_eval_loss(), 4, a.eval_loss()),
        number(a.has_exact_match(), 3, a.exact_match()), note);
  }
  absl::StrAppend(&text, gates, report.verdict(), "\n");
  if (!report.compared_by().empty()) absl::StrAppend(&text, report.compared_by(), "\n");
  return text;
}

}  // namespace qlora::engine
