#include "engine/report/run_summary.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/report/console.h"

namespace qlora::engine {
namespace {

bool IsMatmulWeight(const WeightRow& row, const ModelSpec& spec) {
  if (row.rows == 1) return false;
  return row.role != WeightRole::kEmbedding || spec.tied_embeddings;
}

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
      absl::StrFormat("; measured here: %.0f GFLOP/s, %.1f GB/s\n", setup.rates.matmul_flops / 1e9,
                      setup.rates.memory_bytes / 1e9));
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
  const int64_t accumulation = setup.job.training().gradient_accumulation_steps();
  const double step = double(accumulation) * plan.micro_batch_seconds + plan.update_seconds;
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

double UsefulFlops(const Setup& setup, int64_t tokens, double attention_pairs) {
  const ModelSpec& spec = setup.spec;
  const bool trained = setup.job.mode() == proto::Mode::FULL;
  double weights = 0;
  for (const WeightRow& row : WeightRows(spec)) {
    if (IsMatmulWeight(row, spec)) weights += double(row.Count());
  }
  double adapters = 0;
  for (const AdaptedModule& module : setup.targets.modules)
    adapters += double(module.ParameterCount());
  // Each visible pair of a query and a key costs 4 FLOP per channel forward (two products) and 8
  // backward.
  const double attention =
      12.0 * attention_pairs * double(spec.layers * spec.query_heads * spec.head_size);
  return double(tokens) * ((trained ? 6.0 : 4.0) * weights + 6.0 * adapters) + attention;
}

}  // namespace qlora::engine
