#include "engine/commands/sweep_setup.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/output_names.h"
#include "engine/plan/plan_limits.h"
#include "engine/plan/step_time.h"
#include "engine/record/check_size.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "proto/sweep_jobs.h"

namespace qlora::engine {
namespace {

// Adapters of one linear op on a GPU (kernels/cuda/product.h: kMaxTerms, less the base).
constexpr size_t kMostOnGpu = 11;

void Grow(BatchCapacity* capacity, const BatchCapacity& by) {
  capacity->tokens = std::max(capacity->tokens, by.tokens);
  capacity->documents = std::max(capacity->documents, by.documents);
  capacity->trained_rows = std::max(capacity->trained_rows, by.trained_rows);
}

void Add(BatchCapacity* capacity, const BatchCapacity& more) {
  capacity->tokens += more.tokens;
  capacity->documents += more.documents;
  capacity->trained_rows += more.trained_rows;
}

// Rows beside which more rows do not make the frozen weights' products any cheaper for each; what
// they take of the caches makes the rest dearer (bench/sweep_curve.py).
constexpr int64_t kRowsEnough = 2048;

// Puts the adapters of each round into as few groups as have at most `rows` rows each (one that has
// more is alone), of much the same size.
void ChooseGroups(int64_t rows, absl::Span<const RecordOptions> records,
                  std::vector<SweepSetup::Adapter>* adapters) {
  std::map<int64_t, std::vector<size_t>> rounds;
  for (size_t i = 0; i < adapters->size(); ++i) rounds[(*adapters)[i].round].push_back(i);
  for (const auto& [round, members] : rounds) {
    int64_t most = 1;
    for (const size_t i : members) most = std::max(most, records[i].train.tokens);
    const int64_t count = int64_t(members.size());
    const int64_t of_group = std::clamp<int64_t>(rows / most, 1, count);
    const int64_t groups = (count + of_group - 1) / of_group;
    for (int64_t k = 0; k < count; ++k) (*adapters)[members[k]].group = k * groups / count;
  }
}

// One program for all: every adapter in each of its linears; rows for all adapters whose rows go
// through the model in one pass; evaluation and generation for the one that needs most.
RecordOptions JoinRecords(absl::Span<const RecordOptions> records,
                          const std::vector<SweepSetup::Adapter>& adapters) {
  RecordOptions joined = records.front();
  joined.storage.lora.clear();
  std::map<std::pair<int64_t, int64_t>, BatchCapacity> rows;  // of round and group
  for (size_t i = 0; i < adapters.size(); ++i) {
    const RecordOptions& own = records[i];
    joined.storage.lora.push_back(own.storage.lora.front());
    joined.storage.rope_positions =
        std::max(joined.storage.rope_positions, own.storage.rope_positions);
    Add(&rows[{adapters[i].round, adapters[i].group}], own.train);
    if (own.eval) {
      if (!joined.eval) joined.eval = own.eval;
      Grow(&*joined.eval, *own.eval);
    }
    if (own.generate) {
      if (!joined.generate) joined.generate = own.generate;
      GenerationShape& shape = *joined.generate;
      shape.sequences = std::max(shape.sequences, own.generate->sequences);
      shape.context = std::max(shape.context, own.generate->context);
      shape.prefill = std::max(shape.prefill, own.generate->prefill);
    }
  }
  joined.train = {};
  for (const auto& [place, capacity] : rows) {
    Grow(&joined.train, capacity);
    joined.passes = std::max(joined.passes, place.second + 1);
  }
  return joined;
}

void ChooseRounds(SweepSetup* sweep) {
  std::set<int32_t> ranks;
  for (const auto& adapter : sweep->adapters) ranks.insert(adapter.setup->job.lora().r());
  for (auto& adapter : sweep->adapters) {
    adapter.round = std::distance(ranks.begin(), ranks.find(adapter.setup->job.lora().r()));
  }
}

// A folder in output_dir belongs to one adapter or to a command.
absl::Status CheckNames(const std::vector<proto::SweepJob>& jobs) {
  std::vector<std::string> problems;
  for (const proto::SweepJob& own : jobs) {
    if (!IsOutputName(own.name)) continue;
    problems.push_back(absl::StrCat(
        own.path, ".name: found \"", own.name,
        "\"; allowed: what is not the name of something else in output_dir; give another one"));
  }
  if (problems.empty()) return absl::OkStatus();
  return proto::BadJobError(absl::StrJoin(problems, "\n"));
}

absl::Status CheckDevice(const SweepSetup& sweep) {
  const Setup& first = *sweep.adapters.front().setup;
  if (first.device->info().is_host || sweep.adapters.size() <= kMostOnGpu) return absl::OkStatus();
  return proto::BadJobError(absl::StrCat("sweep: found ", sweep.adapters.size(),
                                         " adapters; allowed: at most ", kMostOnGpu,
                                         " on a GPU; split it into several sweeps"));
}

// Makes the first adapter's setup that of the run: all adapters, in groups of at most kRowsEnough
// rows, or in those smaller ones that fit and take the least time, as by their plans.
absl::Status JoinRun(SweepSetup* sweep) {
  std::vector<RecordOptions> records;
  for (const auto& adapter : sweep->adapters) records.push_back(adapter.setup->record);
  Setup& first = *sweep->adapters.front().setup;
  const auto join = [&](int64_t rows) {
    ChooseGroups(rows, records, &sweep->adapters);
    first.record = JoinRecords(records, sweep->adapters);
    return CheckSize(first.spec, first.record);
  };
  if (absl::Status s = join(kRowsEnough); !s.ok()) return s;
  absl::StatusOr<PlanLimits> limits =
      LimitsOf(first, !sweep->job.quantization().quantize_cache().empty());
  if (!limits.ok()) return limits.status();
  first.limits = *std::move(limits);
  int64_t best = 1, tried_tokens = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t rows = kRowsEnough; rows >= 1; rows /= 2) {
    if (absl::Status s = join(rows); !s.ok()) return s;
    if (first.record.train.tokens == tried_tokens) continue;
    tried_tokens = first.record.train.tokens;
    const Plan plan = BestPlan(first.spec, first.record, *first.device, first.rates, first.limits);
    if (!Fits(plan, first.limits)) continue;
    const double seconds = TimeOfStep(plan, first.rates, first.record.micro_batches).seconds;
    if (seconds < least) best = rows, least = seconds;
    // Smaller groups could only save memory.
    if (plan.recompute_seconds == 0) break;
  }
  return join(best);
}

}  // namespace

std::string SweepSetup::Names() const {
  return absl::StrJoin(adapters, ", ", [](std::string* out, const Adapter& adapter) {
    absl::StrAppend(out, adapter.name);
  });
}

PlannedRun SweepSetup::planned() const {
  PlannedRun run{.output_dir = job.output_dir()};
  for (const Adapter& adapter : adapters) run.setups.push_back(adapter.setup.get());
  return run;
}

absl::StatusOr<std::unique_ptr<SweepSetup>> PrepareSweep(const proto::Job& job,
                                                         proto::Command command, Env* env) {
  auto sweep = std::make_unique<SweepSetup>();
  sweep->job = job;
  int exit_code = proto::kExitDone;
  std::vector<std::string> problems;
  std::vector<proto::SweepJob> jobs = proto::SweepJobs(job);
  if (absl::Status s = CheckNames(jobs); !s.ok()) return s;
  for (proto::SweepJob& own : jobs) {
    const Setup* first = sweep->adapters.empty() ? nullptr : sweep->adapters.front().setup.get();
    absl::StatusOr<std::unique_ptr<Setup>> setup =
        first == nullptr ? PrepareSetup(own.job, command, env) : PrepareBeside(*first, own.job);
    if (setup.ok()) {
      sweep->adapters.push_back({std::move(own.name), *std::move(setup)});
      continue;
    }
    if (problems.empty()) exit_code = proto::ExitCodeOf(setup.status());
    problems.push_back(
        absl::StrCat(own.path, " (", own.name, "): ", std::string(setup.status().message())));
  }
  if (!problems.empty()) return proto::ErrorOfExitCode(exit_code, absl::StrJoin(problems, "\n"));
  if (job.sweep().raise_rank()) ChooseRounds(sweep.get());
  if (absl::Status s = CheckDevice(*sweep); !s.ok()) return s;

  if (absl::Status s = JoinRun(sweep.get()); !s.ok()) return s;
  Setup& first = *sweep->adapters.front().setup;
  if (first.device->info().is_host || first.device_is_planned) return sweep;
  absl::StatusOr<KernelSelection> kernels =
      SelectKernels(Record(first.spec, first.record, *first.device).program.Ops(),
                    job.kernel_selection(), {}, first.device.get(), &first.warnings);
  if (!kernels.ok()) return proto::DoesNotFitError(kernels.status().message());
  first.record.kernels = *std::move(kernels);
  return sweep;
}

}  // namespace qlora::engine
