#include "engine/commands/sweep_setup.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/plan/plan_limits.h"
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

// One program for all: every adapter in each of its linears; rows for all adapters that take a step
// together, that is, of one round; evaluation and generation for the one that needs most.
RecordOptions JoinRecords(const std::vector<SweepSetup::Adapter>& adapters) {
  RecordOptions joined = adapters.front().setup->record;
  joined.storage.lora.clear();
  std::map<int64_t, BatchCapacity> rows;
  for (const SweepSetup::Adapter& adapter : adapters) {
    const RecordOptions& own = adapter.setup->record;
    joined.storage.lora.push_back(own.storage.lora.front());
    joined.storage.rope_positions =
        std::max(joined.storage.rope_positions, own.storage.rope_positions);
    Add(&rows[adapter.round], own.train);
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
  for (const auto& [round, capacity] : rows) Grow(&joined.train, capacity);
  return joined;
}

void ChooseRounds(SweepSetup* sweep) {
  std::set<int32_t> ranks;
  for (const auto& adapter : sweep->adapters) ranks.insert(adapter.setup->job.lora().r());
  for (auto& adapter : sweep->adapters) {
    adapter.round = std::distance(ranks.begin(), ranks.find(adapter.setup->job.lora().r()));
  }
}

absl::Status CheckDevice(const SweepSetup& sweep) {
  const Setup& first = *sweep.adapters.front().setup;
  if (first.device->info().is_host || sweep.adapters.size() <= kMostOnGpu) return absl::OkStatus();
  return proto::BadJobError(absl::StrCat("sweep: found ", sweep.adapters.size(),
                                         " adapters; allowed: at most ", kMostOnGpu,
                                         " on a GPU; split it into several sweeps"));
}

}  // namespace

std::string SweepSetup::Names() const {
  return absl::StrJoin(adapters, ", ", [](std::string* out, const Adapter& adapter) {
    absl::StrAppend(out, adapter.name);
  });
}

PlannedRun SweepSetup::planned() const {
  PlannedRun run{.output_dir = job.output_dir()};
  std::map<int64_t, int64_t> of_round;
  for (const Adapter& adapter : adapters) {
    run.setups.push_back(adapter.setup.get());
    run.together = std::max(run.together, ++of_round[adapter.round]);
  }
  return run;
}

absl::StatusOr<std::unique_ptr<SweepSetup>> PrepareSweep(const proto::Job& job,
                                                         proto::Command command, Env* env) {
  auto sweep = std::make_unique<SweepSetup>();
  sweep->job = job;
  int exit_code = proto::kExitDone;
  std::vector<std::string> problems;
  for (proto::SweepJob& own : proto::SweepJobs(job)) {
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

  Setup& first = *sweep->adapters.front().setup;
  first.record = JoinRecords(sweep->adapters);
  if (absl::Status s = CheckSize(first.spec, first.record); !s.ok()) return s;
  absl::StatusOr<PlanLimits> limits = LimitsOf(first, !job.quantization().quantize_cache().empty());
  if (!limits.ok()) return limits.status();
  first.limits = *std::move(limits);
  if (first.device->info().is_host || first.device_is_planned) return sweep;
  absl::StatusOr<KernelSelection> kernels =
      SelectKernels(Record(first.spec, first.record, *first.device).program.Ops(),
                    job.kernel_selection(), {}, first.device.get(), &first.warnings);
  if (!kernels.ok()) return proto::DoesNotFitError(kernels.status().message());
  first.record.kernels = *std::move(kernels);
  return sweep;
}

}  // namespace qlora::engine
