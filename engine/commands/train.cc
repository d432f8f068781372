#include "engine/commands/train.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/checkpoint/disk_room.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/checkpoint/output_folder.h"
#include "engine/data/join_batches.h"
#include "engine/input_error.h"
#include "engine/plan/host_memory.h"
#include "engine/report/run_summary.h"
#include "engine/setup/join_ranks.h"
#include "engine/setup/load_model.h"
#include "engine/step/integrity.h"
#include "engine/step/step.h"

namespace qlora::engine {
namespace {

class TrainingRun {
 public:
  TrainingRun(const Together& together, Console* console, const volatile std::sig_atomic_t* stop)
      : together_(together),
        setup_(*together.members.front().setup),
        training_(setup_.job.training()),
        console_(*console),
        stop_(*stop),
        record_(setup_.record) {}

  absl::Status Run() {
    if (ranks() != nullptr) {
      // That the jobs are the same they know; now, what the readers found.
      if (absl::Status s =
              AgreeOnJob(ranks(), absl::StrCat("model ", setup_.base_hash, "\ndata ",
                                               setup_.train_data.report.sha256, "\nheld out ",
                                               setup_.eval_data.report.sha256, "\n"));
          !s.ok()) {
        return s;
      }
    }
    console_.Line(StartSummary(setup_));
    if (absl::Status s = MakePlan(); !s.ok()) return s;
    std::vector<std::optional<std::string>> starts;
    for (const Together::Member& member : together_.members) {
      absl::StatusOr<std::optional<std::string>> start = FindStart(*member.setup);
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
    if (absl::Status s = Prepare(starts); !s.ok()) return s;
    absl::Status trained = absl::OkStatus();
    for (int64_t round = 0; trained.ok() && HasRound(round); ++round) trained = TrainRound(round);
    console_.EndLive();
    if (!trained.ok()) return trained;
    return Finish();
  }

 private:
  Ranks* ranks() const { return setup_.ranks; }
  bool is_alone() const { return together_.members.size() == 1; }

  void Enter(Phase phase, absl::string_view detail = "") {
    if (ranks() != nullptr) ranks()->control().Enter(phase, std::string(detail));
  }

  // Comes back when all ranks are here.
  absl::Status Meet(const std::string& what) {
    return ranks() == nullptr ? absl::OkStatus() : ranks()->control().AllGather(what, "").status();
  }

  // The checkpoint to go on from: what rank 0, which wrote it, finds.
  absl::StatusOr<std::optional<std::string>> FindStart(const Setup& setup) {
    std::string found;
    if (setup.is_first()) {
      absl::StatusOr<std::optional<std::string>> resume = CheckOutputFolder(setup, &console_);
      if (!resume.ok() || ranks() == nullptr) return resume;
      found = resume->value_or("");
    }
    absl::StatusOr<std::string> agreed = ranks()->control().FromFirst("where to begin", found);
    if (!agreed.ok()) return agreed.status();
    return agreed->empty() ? std::nullopt : std::optional<std::string>(*agreed);
  }

  // Into a cache of the quantized base one machine writes; the others read what it left.
  absl::Status Load() {
    const bool in_turns = ranks() != nullptr && !setup_.job.quantization().quantize_cache().empty();
    const std::string turn = "the first machine's quantized base";
    const bool begins = !in_turns || ranks()->neighbours().front() == 0;
    if (!begins) {
      if (absl::Status s = Meet(turn); !s.ok()) return s;
    }
    Enter(Phase::kLoading, "the model");
    absl::Status loaded =
        LoadModel(setup_, setup_.job.lora().init_from(), execution_.get(), &console_);
    for (size_t i = 1; loaded.ok() && i < together_.members.size(); ++i) {
      const Setup& setup = *together_.members[i].setup;
      loaded = StartAdapter(setup, setup.job.lora().init_from(), execution_.get(), int64_t(i));
    }
    if (!loaded.ok() || !in_turns || !begins) return loaded;
    return Meet(turn);
  }

  absl::Status MakePlan() {
    absl::StatusOr<Plan> plan =
        engine::MakePlan(setup_.spec, record_, *setup_.device, setup_.rates, setup_.limits);
    if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
    plan_ = *std::move(plan);
    // Several courses' states would be copied once for each.
    saves_beside_ = is_alone() && PlanStateCopy(setup_, &plan_);
    console_.Line(PlanSummary(setup_, plan_));
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
      need += NeedOf(setup, plan_, int64_t(i), done);
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
        SelectKernels(plan_.run.program.Ops(), setup_.job.kernel_selection(), earlier,
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

  absl::Status Prepare(const std::vector<std::optional<std::string>>& starts) {
    absl::StatusOr<std::unique_ptr<Execution>> execution = Execution::Create(
        plan_, setup_.device.get(), ranks() == nullptr ? nullptr : &ranks()->comm());
    if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
    execution_ = *std::move(execution);
    if (absl::Status s = Load(); !s.ok()) return s;
    for (size_t i = 0; i < starts.size(); ++i) {
      const Together::Member& member = together_.members[i];
      courses_.push_back(std::make_unique<Course>(*member.setup, int64_t(i),
                                                  is_alone() ? "" : member.name + ": ",
                                                  saves_beside_, execution_.get(), &console_));
      if (absl::Status s = courses_.back()->Begin(starts[i], ChoicesNow()); !s.ok()) return s;
    }
    absl::StatusOr<Integrity> integrity = Integrity::Create(execution_.get(), ranks());
    if (!integrity.ok()) return integrity.status();
    integrity_.emplace(*std::move(integrity));
    return Meet("everything is loaded");
  }

  bool HasRound(int64_t round) const {
    const bool has_members =
        std::any_of(together_.members.begin(), together_.members.end(),
                    [&](const Together::Member& member) { return member.round == round; });
    if (!has_members || round == 0 || !together_.wants_round) return has_members;
    return together_.wants_round(courses_, round);
  }

  absl::Status TrainRound(int64_t round) {
    std::vector<Course*> members;
    for (size_t i = 0; i < courses_.size(); ++i) {
      if (together_.members[i].round != round) continue;
      members.push_back(courses_[i].get());
      if (absl::Status s = courses_[i]->Open(); !s.ok()) return s;
    }
    rounds_ = round + 1;
    TrainStep step(execution_.get(),
                   {.micro_batches = training_.gradient_accumulation_steps(),
                    .tree_sum = training_.gradient_sum() == proto::GradientSum::TREE,
                    .beta1 = training_.adam_beta1(),
                    .beta2 = training_.adam_beta2()},
                   ranks() == nullptr ? nullptr : &ranks()->comm());
    begin_seconds_ = setup_.env->MonotonicSeconds();
    begin_steps_ = StepsDone(members);
    for (;;) {
      std::vector<Course*> active;
      std::copy_if(members.begin(), members.end(), std::back_inserter(active),
                   [](const Course* course) { return course->is_active(); });
      if (active.empty()) return absl::OkStatus();
      if (absl::Status s = OneStep(active, &step); !s.ok()) return s;
      ShowProgress(members, active);
      if (absl::Status s = DoWhatIsDue(active); !s.ok()) return s;
    }
  }

  // Behind a step of `active`.
  absl::Status DoWhatIsDue(const std::vector<Course*>& active) {
    std::vector<Course*> sound;
    for (Course* course : active) {
      if (absl::Status s = course->CheckWriter(); !s.ok()) return s;
      if (course->failure().ok()) sound.push_back(course);
    }
    for (Course* course : sound) {
      if (absl::Status s = course->EvaluateIfDue(); !s.ok()) return s;
    }
    absl::StatusOr<int> signal = AgreeOnStop();
    if (!signal.ok()) return signal.status();
    if (absl::Status s = SaveWhatIsDue(sound, *signal != 0); !s.ok()) return s;
    const bool goes_on = std::any_of(sound.begin(), sound.end(),
                                     [](const Course* course) { return course->is_active(); });
    if (*signal == 0 || !goes_on) return absl::OkStatus();
    const Course& first = *sound.front();
    return proto::StoppedError(
        *signal, absl::StrCat("stopped after step ", first.state().step(), " of ",
                              first.setup().total_steps, "; the same command goes on from there"));
  }

  // No checkpoint of weights that have changed by themselves.
  absl::Status SaveWhatIsDue(const std::vector<Course*>& courses, bool stops) {
    if (courses.empty()) return absl::OkStatus();
    const int64_t done = courses.front()->state().step();
    const bool saves = std::any_of(courses.begin(), courses.end(),
                                   [&](const Course* course) { return course->SaveIsDue(stops); });
    if (saves || done % kIntegritySteps == 0) {
      if (absl::Status s = integrity_->Check(done); !s.ok()) return s;
    }
    for (Course* course : courses) {
      if (!course->SaveIsDue(stops)) continue;
      if (absl::Status s = course->Save(stops); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  // The signal to stop after this step, 0 where no rank has one: all see the same, so that none
  // waits for one that is gone.
  absl::StatusOr<int> AgreeOnStop() {
    const int mine = stop_;
    if (ranks() == nullptr) return mine;
    absl::StatusOr<std::vector<std::string>> all =
        ranks()->control().AllGather("whether to stop", absl::StrCat(mine));
    if (!all.ok()) return all.status();
    for (const std::string& text : *all) {
      int signal;
      if (absl::SimpleAtoi(text, &signal) && signal != 0) return signal;
    }
    return 0;
  }

  absl::Status OneStep(const std::vector<Course*>& active, TrainStep* step) {
    Enter(Phase::kComputing, absl::StrCat("step ", active.front()->state().step() + 1));
    const double begin = setup_.env->MonotonicSeconds();
    const double busy_before = setup_.device->BusySeconds();
    const int64_t paged_in = step->paged_in(), paged_out = step->paged_out();
    const double waited_before = step->waited_seconds();
    std::vector<std::vector<MicroBatch>> batches(courses_.size());
    std::vector<CourseStep> steps(courses_.size(), {.is_active = false});
    for (size_t i = 0; i < courses_.size(); ++i) {
      if (!IsAmong(active, i)) continue;
      steps[i] = courses_[i]->PrepareStep(&batches[i]);
    }
    JoinedBatch joined;
    const auto give = [&](int64_t j) -> absl::StatusOr<MicroBatchInputs> {
      if (ranks() != nullptr) ranks()->control().Progress();
      if (is_alone()) return batches.front()[j].inputs();
      std::vector<const MicroBatch*> parts;
      for (const std::vector<MicroBatch>& batch : batches) {
        parts.push_back(batch.empty() ? nullptr : &batch[j]);
      }
      joined = JoinBatches(parts);
      return joined.inputs();
    };
    absl::StatusOr<std::vector<StepResult>> results = step->Run(steps, give);
    if (!results.ok()) return results.status();
    const double seconds = setup_.env->MonotonicSeconds() - begin;
    const StepCost cost{.seconds = seconds,
                        .busy_share = (setup_.device->BusySeconds() - busy_before) / seconds,
                        .communication_share = (step->waited_seconds() - waited_before) / seconds,
                        .paged_in_bytes = step->paged_in() - paged_in,
                        .paged_out_bytes = step->paged_out() - paged_out};
    if (absl::Status s = ExplainSkipped(steps, *results, step, give); !s.ok()) return s;
    for (size_t i = 0; i < courses_.size(); ++i) {
      if (!steps[i].is_active) continue;
      if (absl::Status s = courses_[i]->FinishStep(batches[i], steps[i], (*results)[i], cost);
          !s.ok()) {
        return s;
      }
    }
    return absl::OkStatus();
  }

  // Once for each run of skipped steps, on all ranks alike: looking costs more than a step.
  absl::Status ExplainSkipped(const std::vector<CourseStep>& steps,
                              const std::vector<StepResult>& results, TrainStep* step,
                              TrainStep::Batches give) {
    std::vector<Course*> asking;
    for (size_t i = 0; i < courses_.size(); ++i) {
      if (steps[i].is_active && courses_[i]->lacks_cause(results[i])) {
        asking.push_back(courses_[i].get());
      }
    }
    if (asking.empty()) return absl::OkStatus();
    absl::StatusOr<std::string> found = step->FindNonFinite(steps, give);
    if (!found.ok()) return found.status();
    if (ranks() != nullptr) {
      absl::StatusOr<std::vector<std::string>> all =
          ranks()->control().AllGather("what is not finite", *found);
      if (!all.ok()) return all.status();
      for (size_t rank = all->size(); rank-- > 0;) {
        if (!(*all)[rank].empty()) *found = absl::StrCat((*all)[rank], " of rank ", rank);
      }
    }
    for (Course* course : asking) {
      course->set_cause(
          found->empty() ? "Run again, every micro-batch is finite: a sum of gradients overflowed, "
                           "or memory gave something else than was written"
                         : absl::StrCat("The first value that is not finite is in ", *found));
    }
    return absl::OkStatus();
  }

  bool IsAmong(const std::vector<Course*>& active, size_t index) const {
    return std::find(active.begin(), active.end(), courses_[index].get()) != active.end();
  }

  static int64_t StepsDone(const std::vector<Course*>& members) {
    int64_t steps = 0;
    for (const Course* course : members) steps += course->state().step();
    return steps;
  }

  void ShowProgress(const std::vector<Course*>& members, const std::vector<Course*>& active) {
    int64_t all = 0;
    for (const Course* course : members) all += course->setup().total_steps;
    const int64_t done = StepsDone(members);
    const double elapsed = setup_.env->MonotonicSeconds() - begin_seconds_;
    const double left = elapsed / double(done - begin_steps_) * double(all - done);
    const std::string state =
        is_alone() ? active.front()->Progress() : absl::StrCat(active.size(), " adapters");
    console_.Live(absl::StrFormat("%s %d/%d  %s  %s  left %s", Bar(double(done) / double(all), 20),
                                  done, all, state, FormatBytes(ResidentHostMemory()),
                                  FormatDuration(left)));
  }

  absl::Status Finish() {
    absl::Status failure;
    for (size_t i = 0; i < courses_.size(); ++i) {
      failure.Update(courses_[i]->failure());
      const bool has_result = together_.members[i].round < rounds_ && courses_[i]->failure().ok();
      if (!setup_.is_first() || !has_result) continue;
      if (absl::Status s = courses_[i]->WriteResults(); !s.ok()) return s;
    }
    if (together_.report) {
      if (absl::Status s = together_.report(courses_); !s.ok()) return s;
    }
    if (!failure.ok()) return failure;
    if (absl::Status s = Meet("the end"); !s.ok()) return s;
    Enter(Phase::kFinished);
    absl::Status gates;
    for (size_t i = 0; setup_.is_first() && i < courses_.size(); ++i) {
      if (together_.members[i].round < rounds_) gates.Update(courses_[i]->CheckGates());
    }
    return gates;
  }

  const Together& together_;
  const Setup& setup_;  // the first: what of it is shared by all
  const proto::Training& training_;
  Console& console_;
  const volatile std::sig_atomic_t& stop_;
  RecordOptions record_;
  Plan plan_;
  bool saves_beside_ = false;
  std::unique_ptr<Execution> execution_;
  std::vector<std::unique_ptr<Course>> courses_;
  std::optional<Integrity> integrity_;
  int64_t rounds_ = 0;  // begun
  double begin_seconds_ = 0;
  int64_t begin_steps_ = 0;
};

}  // namespace

absl::Status Train(const Setup& setup, Console* console,
                   const volatile std::sig_atomic_t* stop_signal) {
  return TrainTogether({.members = {{&setup, ""}}}, console, stop_signal);
}

absl::Status TrainTogether(const Together& together, Console* console,
                           const volatile std::sig_atomic_t* stop_signal) {
  TrainingRun run(together, console, stop_signal);
  const absl::Status status = run.Run();
  if (Ranks* const ranks = together.members.front().setup->ranks; ranks != nullptr) {
    LeaveRanks(ranks, status);
  }
  return status;
}

}  // namespace qlora::engine
