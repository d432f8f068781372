#include "engine/commands/prepared_run.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/disk_room.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/checkpoint/output_folder.h"
#include "engine/report/run_summary.h"
#include "engine/setup/join_ranks.h"
#include "engine/setup/load_model.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

class RunPreparation {
 public:
  RunPreparation(const Together& together, PreparedRun* run, Console* console)
      : together_(together),
        setup_(*together.members.front().setup),
        run_(*run),
        console_(*console),
        record_(setup_.record) {}

  absl::Status Run() {
    if (absl::Status s = AgreeOnInputs(); !s.ok()) return s;
    console_.Line(StartSummary(setup_));
    if (absl::Status s = MakePlan(); !s.ok()) return s;
    // Courses end together: until all have, none is done.
    const bool is_unfinished = std::any_of(
        together_.members.begin(), together_.members.end(), [](const Together::Member& member) {
          return HoldsUnfinishedRun(member.setup->env, member.setup->job.output_dir());
        });
    std::vector<std::optional<std::string>> starts;
    for (const Together::Member& member : together_.members) {
      absl::StatusOr<std::optional<std::string>> start = FindStart(*member.setup, is_unfinished);
      if (!start.ok()) return start.status();
      starts.push_back(*start);
    }
    const auto resumed = std::find_if(starts.begin(), starts.end(),
                                      [](const auto& start) { return start.has_value(); });
    if (resumed != starts.end()) {
      if (absl::Status s = TakeKernelsOf(**resumed); !s.ok()) return s;
    } else if (ranks() != nullptr) {
      if (absl::Status s = TakeKernelsOfFirst(); !s.ok()) return s;
    }
    if (absl::Status s = WarnOfFullDisk(starts); !s.ok()) return s;
    return Begin(starts);
  }

 private:
  Ranks* ranks() const { return setup_.ranks; }
  bool is_alone() const { return together_.members.size() == 1; }

  // That the jobs are the same the ranks know; now, what the readers found.
  absl::Status AgreeOnInputs() {
    if (ranks() == nullptr) return absl::OkStatus();
    return AgreeOnJob(
        ranks(),
        absl::StrCat("model ", setup_.base_hash, "\ndata ", setup_.train_data.report.sha256,
                     "\nheld out ", setup_.eval_data.report.sha256, "\ntokens ",
                     setup_.samples_hash, "\nheld-out tokens ", setup_.held_out_hash, "\n"));
  }

  // The checkpoint to go on from: what rank 0, which has the folder and wrote it, finds.
  absl::StatusOr<std::optional<std::string>> FindStart(const Setup& setup, bool is_unfinished) {
    std::string found;
    if (setup.is_first()) {
      absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
          FolderClaim::Take(setup.env, setup.job.output_dir(), &console_);
      if (!claim.ok()) return claim.status();
      run_.claims.push_back(*std::move(claim));
      absl::StatusOr<std::optional<std::string>> resume =
          CheckOutputFolder(setup, is_unfinished, &console_);
      if (!resume.ok() || ranks() == nullptr) return resume;
      found = resume->value_or("");
    }
    absl::StatusOr<std::string> agreed = ranks()->control().FromFirst("where to begin", found);
    if (!agreed.ok()) return agreed.status();
    return agreed->empty() ? std::nullopt : std::optional<std::string>(*agreed);
  }

  absl::Status MakePlan() {
    absl::StatusOr<Plan> plan =
        engine::MakePlan(setup_.spec, record_, *setup_.device, setup_.rates, setup_.limits);
    if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
    run_.plan = *std::move(plan);
    // Several courses' states would be copied once for each.
    saves_beside_ = is_alone() && PlanStateCopy(setup_, &run_.plan);
    console_.Line(PlanSummary(setup_, run_.plan));
    return absl::OkStatus();
  }

  // Only a warning: others may make room, or need it, by then.
  absl::Status WarnOfFullDisk(const std::vector<std::optional<std::string>>& starts) {
    if (!setup_.is_first()) return absl::OkStatus();
    DiskNeed need;
    for (size_t i = 0; i < starts.size(); ++i) {
      const Setup& setup = *together_.members[i].setup;
      int64_t done = 0;
      if (starts[i].has_value()) {
        absl::StatusOr<proto::RunState> state = ReadRunState(setup.env, *starts[i]);
        if (!state.ok()) return proto::Annotate(state.status(), *starts[i]);
        done = state->step();
      }
      need += NeedOf(setup, run_.plan, int64_t(i), done);
    }
    // Several courses' folders lie in one.
    const std::string shortage = DescribeShortage(setup_.env, setup_.job.output_dir(), need);
    if (!shortage.empty()) console_.Warning(shortage);
    return absl::OkStatus();
  }

  // Goes on with the kernels that the run began with: others round otherwise.
  absl::Status TakeKernelsOf(const std::string& checkpoint) {
    absl::StatusOr<proto::RunState> state = ReadRunState(setup_.env, checkpoint);
    if (!state.ok()) return proto::Annotate(state.status(), checkpoint);
    return TakeKernels({state->kernel_choices().begin(), state->kernel_choices().end()});
  }

  // Where kernels are timed, ranks may have measured differently.
  absl::Status TakeKernelsOfFirst() {
    proto::RunState state;
    for (const auto& [key, variant] : ChoicesNow()) {
      (*state.mutable_kernel_choices())[key] = variant;
    }
    absl::StatusOr<std::string> first =
        ranks()->control().FromFirst("the kernels", state.SerializeAsString());
    if (!first.ok()) return first.status();
    if (!state.ParseFromString(*first)) return absl::InternalError("the kernels can't be read");
    return TakeKernels({state.kernel_choices().begin(), state.kernel_choices().end()});
  }

  absl::Status TakeKernels(const EarlierChoices& earlier) {
    if (earlier == ChoicesNow()) return absl::OkStatus();
    std::vector<std::string> warnings;
    absl::StatusOr<KernelSelection> kernels =
        SelectKernels(run_.plan.run.program.Ops(), setup_.job.kernel_selection(), earlier,
                      setup_.device.get(), &warnings);
    if (!kernels.ok()) return proto::DoesNotFitError(kernels.status().message());
    for (const std::string& warning : warnings) console_.Warning(warning);
    if (kernels->choices() == record_.kernels.choices()) return absl::OkStatus();
    record_.kernels = *std::move(kernels);
    return MakePlan();
  }

  EarlierChoices ChoicesNow() const {
    EarlierChoices choices;
    for (const auto& [key, variant] : record_.kernels.choices()) {
      choices[key] = kernels::NameOf(variant);
    }
    return choices;
  }

  // Into a cache of the quantized base one machine writes; the others read what it left.
  absl::Status Load() {
    const bool in_turns = ranks() != nullptr && !setup_.job.quantization().quantize_cache().empty();
    const std::string turn = "the first machine's quantized base";
    const bool begins = !in_turns || ranks()->neighbours().front() == 0;
    if (!begins) {
      if (absl::Status s = Meet(ranks(), turn); !s.ok()) return s;
    }
    EnterPhase(ranks(), Phase::kLoading, "the model");
    absl::Status loaded =
        LoadModel(setup_, setup_.job.lora().init_from(), run_.execution.get(), &console_);
    for (size_t i = 1; loaded.ok() && i < together_.members.size(); ++i) {
      const Setup& setup = *together_.members[i].setup;
      loaded = StartAdapter(setup, setup.job.lora().init_from(), run_.execution.get(), int64_t(i));
    }
    if (!loaded.ok() || !in_turns || !begins) return loaded;
    return Meet(ranks(), turn);
  }

  absl::Status Begin(const std::vector<std::optional<std::string>>& starts) {
    absl::StatusOr<std::unique_ptr<Execution>> execution = Execution::Create(
        run_.plan, setup_.device.get(), ranks() == nullptr ? nullptr : &ranks()->comm());
    if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
    run_.execution = *std::move(execution);
    if (absl::Status s = Load(); !s.ok()) return s;
    for (size_t i = 0; i < starts.size(); ++i) {
      const Together::Member& member = together_.members[i];
      run_.courses.push_back(
          std::make_unique<Course>(*member.setup, int64_t(i), is_alone() ? "" : member.name + ": ",
                                   saves_beside_, run_.execution.get(), &console_));
      if (absl::Status s = run_.courses.back()->Begin(starts[i], ChoicesNow()); !s.ok()) return s;
    }
    absl::StatusOr<Integrity> integrity = Integrity::Create(run_.execution.get(), ranks());
    if (!integrity.ok()) return integrity.status();
    run_.integrity.emplace(*std::move(integrity));
    return Meet(ranks(), "everything is loaded");
  }

  const Together& together_;
  const Setup& setup_;  // the first: what of it is shared by all
  PreparedRun& run_;
  Console& console_;
  RecordOptions record_;
  bool saves_beside_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreparedRun>> PrepareRun(const Together& together,
                                                        Console* console) {
  auto run = std::make_unique<PreparedRun>();
  if (absl::Status s = RunPreparation(together, run.get(), console).Run(); !s.ok()) return s;
  return run;
}

}  // namespace qlora::engine
