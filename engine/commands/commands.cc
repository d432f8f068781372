#include "engine/commands/commands.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/checkpoint/disk_room.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/commands/evaluate.h"
#include "engine/commands/gates.h"
#include "engine/commands/generate.h"
#include "engine/commands/logits_file.h"
#include "engine/data/describe.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/user_cache.h"
#include "engine/plan/plan_report.h"
#include "engine/report/plan_output.h"
#include "engine/report/run_summary.h"
#include "engine/report/speed_log.h"
#include "engine/setup/load_model.h"

namespace qlora::engine {
namespace {

// Samples that `inspect` prints.
constexpr size_t kShownSamples = 3;

absl::StatusOr<Plan> PlanOf(const Setup& setup) {
  absl::StatusOr<Plan> plan =
      MakePlan(setup.spec, setup.record, *setup.device, setup.rates, setup.limits);
  if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
  return plan;
}

void AddStateCopyBeside(int64_t bytes, proto::PlanReport* report) {
  if (bytes == 0) return;
  proto::PlanReport::Item* const item = report->add_items();
  item->set_name(kStateCopyItem);
  item->set_memory("host");
  item->set_bytes(bytes);
  report->set_host_bytes(report->host_bytes() + bytes);
}

absl::StatusOr<std::unique_ptr<Execution>> Load(const Setup& setup, const Plan& plan,
                                                const std::string& adapter, Console* console) {
  absl::StatusOr<std::unique_ptr<Execution>> execution =
      Execution::Create(plan, setup.device.get());
  if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
  if (absl::Status s = LoadModel(setup, adapter, execution->get(), console); !s.ok()) return s;
  return execution;
}

absl::Status CannotWriteLogits(const absl::Status& status) {
  return proto::IoError(absl::StrCat("eval.logits_file cannot be written: ", status.message()));
}

// The file that an evaluation's logits pass into, and its place, which this run has to itself.
struct LogitsPlace {
  std::unique_ptr<FolderClaim> claim;
  LogitsFile file;
};

absl::StatusOr<LogitsPlace> OpenLogits(const Setup& setup, Console* console) {
  const std::string& path = setup.job.eval().logits_file();
  absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
      FolderClaim::TakeBeside(setup.env, path, "eval.logits_file", console);
  if (!claim.ok()) return claim.status();
  if (setup.env->IsFolder(path)) {
    return CannotWriteLogits(absl::AlreadyExistsError(path + " is a folder"));
  }
  if ((*claim)->is_locked()) {
    const absl::Status cleaned = CleanTemporariesOf(setup.env, ParentPath(path), BaseName(path));
    if (!cleaned.ok()) return CannotWriteLogits(cleaned);
  }
  absl::StatusOr<LogitsFile> file =
      LogitsFile::Create(setup.env, path, setup.eval_data, setup.spec.vocab);
  if (!file.ok()) return CannotWriteLogits(file.status());
  return LogitsPlace{*std::move(claim), *std::move(file)};
}

}  // namespace

absl::Status ShowPlan(const PlannedRun& run, Console* console) {
  const Setup& setup = run.setup();
  console->Line(StartSummary(setup));
  Plan plan = BestPlan(setup.spec, setup.record, *setup.device, setup.rates, setup.limits);
  const bool copies = !run.is_sweep() && PlanStateCopy(setup, &plan);
  absl::StatusOr<proto::PlanReport> report = MakePlanReport(
      run, plan, SpeedLog(setup.env, UserCacheFolder()).Read(setup.device->info().name));
  if (!report.ok()) return report.status();
  if (copies) AddStateCopyBeside(StateCopyBeside(setup, plan), &*report);
  console->Line(PlanReportText(*report));
  if (setup.job.plan().report()) {
    const std::string& folder = run.output_dir;
    if (absl::Status s = WritePlanReport(setup.env, folder, *report); !s.ok()) {
      return AsInputError(s);
    }
    console->Line(absl::StrCat("report: ", JoinPath(folder, "plan_report.html"), ", .txt, .json"));
  }
  if (plan.run.train && !setup.device_is_planned && !run.output_dir.empty()) {
    const std::string shortage = DescribeShortage(setup.env, run.output_dir, NeedOf(run, plan));
    if (!shortage.empty()) console->Warning(shortage);
  }
  if (report->fits()) return absl::OkStatus();
  return proto::DoesNotFitError(
      absl::StrCat("the run needs ", FormatBytes(plan.total_bytes), " and ",
                   setup.limits.memory_source, " allows ", FormatBytes(setup.limits.memory_bytes),
                   report->changes_size() > 0 ? "; the plan lists what would make it fit" : ""));
}

absl::Status Inspect(const Setup& setup, Console* console) {
  console->Line(StartSummary(setup));
  console->Line("tensors");
  for (const WeightRow& row : WeightRows(setup.spec)) {
    console->Line(absl::StrFormat("  %-60s [%d, %d]%s", row.name, row.rows, row.cols,
                                  row.quantizable ? "  quantizable" : ""));
  }
  const Dataset& data = setup.train_data.samples.empty() ? setup.eval_data : setup.train_data;
  for (size_t i = 0; i < std::min(kShownSamples, data.samples.size()); ++i) {
    const Sample& sample = data.samples[i];
    console->Line(absl::StrCat(
        "sample of line ", sample.line, ", ", sample.ids.size(),
        " tokens, trained ones between ⟦ and ⟧:\n",
        setup.tokenizer ? DescribeSample(sample, *setup.tokenizer, "⟦", "⟧") : "(no tokenizer)"));
  }
  return absl::OkStatus();
}

absl::Status Evaluate(const Setup& setup, Console* console) {
  std::optional<LogitsPlace> logits;
  if (setup.record.eval_logits) {
    absl::StatusOr<LogitsPlace> place = OpenLogits(setup, console);
    if (!place.ok()) return place.status();
    logits.emplace(*std::move(place));
  }
  absl::StatusOr<Plan> plan = PlanOf(setup);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<std::unique_ptr<Execution>> execution =
      Load(setup, *plan, setup.job.eval().adapter(), console);
  if (!execution.ok()) return execution.status();
  LogitsSink sink;
  if (logits) {
    sink = [&](const MicroBatch& batch, absl::Span<const float> values) {
      const absl::Status s = logits->file.Take(batch, values);
      return s.ok() ? s : CannotWriteLogits(s);
    };
  }
  absl::StatusOr<EvalResult> result = EvaluateLoss(execution->get(), *setup.eval_batches, sink);
  if (!result.ok()) return result.status();
  if (setup.record.generate.has_value()) {
    absl::StatusOr<int64_t> exact = CountExactMatches(
        execution->get(), setup.eval_data, *setup.tokenizer,
        {.max_new_tokens = setup.job.eval().max_new_tokens(), .stop_ids = StopIds(setup)});
    if (!exact.ok()) return exact.status();
    result->exact_matches = *exact;
  }
  console->Line(absl::StrCat(FormatCount(result->samples), " samples, ",
                             FormatCount(result->tokens), " tokens: ", DescribeEval(*result)));
  if (logits) {
    if (absl::Status s = logits->file.Finish(); !s.ok()) return CannotWriteLogits(s);
    console->Line(absl::StrCat("logits: ", setup.job.eval().logits_file()));
  }
  GateMetrics metrics;
  if (result->exact_matches) metrics.exact_match = result->ExactMatch();
  return GateStatus(ReportGates(setup.job.gates(), metrics, console), /*writes=*/false);
}

absl::Status GenerateText(const Setup& setup, Console* console) {
  absl::StatusOr<Plan> plan = PlanOf(setup);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<std::unique_ptr<Execution>> execution =
      Load(setup, *plan, setup.job.generate().adapter(), console);
  if (!execution.ok()) return execution.status();
  const proto::Generate& generate = setup.job.generate();
  absl::StatusOr<std::vector<std::vector<int32_t>>> ids =
      Generate(execution->get(), setup.prompts,
               {.max_new_tokens = generate.max_new_tokens(),
                .temperature = generate.temperature(),
                .top_p = generate.has_top_p() ? generate.top_p() : 1.0,
                .seed = generate.has_seed() ? generate.seed() : setup.job.seed(),
                .stop_ids = StopIds(setup)});
  if (!ids.ok()) return ids.status();
  console->Line(setup.tokenizer->Decode(ids->front(), true));
  return absl::OkStatus();
}

}  // namespace qlora::engine
