#include "engine/report/run_summary.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/plan/step_time.h"
#include "engine/report/console.h"

namespace qlora::engine {
namespace {

std::string DataLine(const char* name, const Dataset& data) {
  return absl::StrCat(name, ": ", DescribeDataset(data.report));
}

}  // namespace

std::string StartSummary(const Setup& setup) {
  const ModelSpec& spec = setup.spec;
  std::string text = absl::StrCat(
      "model: ", spec.family, ", ", FormatCount(ParameterCount(spec)), " parameters, ", spec.layers,
      " layers of ", spec.hidden, ", vocabulary ", FormatCount(spec.vocab), "\n",
      "mode: ", proto::Mode::Value_Name(setup.job.mode()), ", compute ",
      proto::ComputeDtype::Value_Name(setup.job.compute_dtype()), ", on ",
      setup.device->info().name,
      absl::StrFormat("; %s: %.0f GFLOP/s, %.1f GB/s\n", setup.rates_source,
                      setup.rates.matmul_flops / 1e9, setup.rates.memory_bytes / 1e9));
  if (setup.ranks != nullptr) {
    const int64_t accumulation = setup.job.training().gradient_accumulation_steps();
    absl::StrAppend(&text, "ranks: ", setup.world(), ", ", setup.ranks->control().local_size(),
                    " of them on this machine; ", accumulation, " micro-batches a step each, ",
                    accumulation * setup.world(), " in all\n");
  }
  if (!setup.train_data.samples.empty())
    absl::StrAppend(&text, DataLine("data", setup.train_data), "\n");
  if (!setup.eval_data.samples.empty()) {
    absl::StrAppend(&text, DataLine("held out", setup.eval_data), "\n");
  }
  if (!setup.targets.modules.empty()) {
    absl::StrAppend(&text, setup.targets.table, LoraSizeLine(setup.targets, setup.lora_size), "\n");
  }
  return text;
}

std::string PlanSummary(const Setup& setup, const Plan& plan) {
  std::string text = PlanTable(plan, setup.limits);
  if (!plan.run.train.has_value()) return text;
  const int64_t accumulation = setup.record.micro_batches;
  const double step = TimeOfStep(plan, setup.rates, accumulation)
                          .SecondsOn(setup.world(), NetworkOf(setup.job.plan()));
  absl::StrAppendFormat(&text,
                        "time, at the rates measured here\n  %10.3g s  a step of %d full "
                        "micro-batches of %d tokens\n",
                        step, accumulation, setup.record.train.tokens);
  if (setup.total_steps > 0) {
    absl::StrAppendFormat(&text, "  %12s  %d steps, were they all full\n",
                          FormatDuration(step * double(setup.total_steps)), setup.total_steps);
  }
  return text;
}

}  // namespace qlora::engine
