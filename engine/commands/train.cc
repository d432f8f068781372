#include "engine/commands/train.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/output_folder.h"
#include "engine/commands/gates.h"
#include "engine/commands/prepared_run.h"
#include "engine/data/join_batches.h"
#include "engine/io/user_cache.h"
#include "engine/plan/host_memory.h"
#include "engine/plan/step_time.h"
#include "engine/report/speed_log.h"
#include "engine/setup/join_ranks.h"
#include "engine/step/step.h"
#include "engine/version.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"

namespace qlora::engine {
namespace {

class TrainingRun {
 public:
  TrainingRun(const Together& together, Console* console, StopFlag* stop)
      : together_(together),
        setup_(*together.members.front().setup),
        training_(setup_.job.training()),
        console_(*console),
        stop_(stop, setup_.ranks) {}

  absl::Status Run() {
    absl::StatusOr<std::unique_ptr<PreparedRun>> prepared = PrepareRun(together_, &console_);
    if (!prepared.ok()) return prepared.status();
    run_ = *std::move(prepared);
    stop_.Heed();
    absl::Status trained = absl::OkStatus();
    for (int64_t round = 0; trained.ok() && HasRound(round); ++round) trained = TrainRound(round);
    console_.EndLive();
    if (!trained.ok()) return trained;
    return Finish();
  }

 private:
  Ranks* ranks() const { return setup_.ranks; }
  bool is_alone() const { return together_.members.size() == 1; }

  bool HasRound(int64_t round) const {
    const bool has_members =
        std::any_of(together_.members.begin(), together_.members.end(),
                    [&](const Together::Member& member) { return member.round == round; });
    if (!has_members || round == 0 || !together_.wants_round) return has_members;
    return together_.wants_round(run_->courses, round);
  }

  absl::Status TrainRound(int64_t round) {
    std::vector<Course*> members;
    for (size_t i = 0; i < run_->courses.size(); ++i) {
      if (together_.members[i].round == round) members.push_back(run_->courses[i].get());
    }
    if (absl::Status s = Open(members); !s.ok()) return s;
    rounds_ = round + 1;
    TrainStep step(run_->execution.get(),
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

  absl::Status Open(const std::vector<Course*>& members) {
    std::vector<Course*> completed;
    for (Course* course : members) {
      const bool lacked = course->lacks_evaluation();
      if (absl::Status s = course->Open(&stop_); !s.ok()) return s;
      if (lacked && !course->lacks_evaluation()) completed.push_back(course);
    }
    // Their last checkpoints become what they would have been, had the run not stopped.
    if (absl::Status s = SaveWhatIsDue(completed, false); !s.ok()) return s;
    absl::StatusOr<int> signal = stop_.Agree();
    if (!signal.ok()) return signal.status();
    if (*signal == 0) return absl::OkStatus();
    return proto::StoppedError(
        *signal, absl::StrCat("stopped before step ", members.front()->state().step() + 1,
                              ": there was nothing to save; the same command begins there"));
  }

  // Behind a step of `active`.
  absl::Status DoWhatIsDue(const std::vector<Course*>& active) {
    std::vector<Course*> sound;
    for (Course* course : active) {
      if (absl::Status s = course->CheckWriter(); !s.ok()) return s;
      if (course->failure().ok()) sound.push_back(course);
    }
    for (Course* course : sound) {
      if (absl::Status s = course->EvaluateIfDue(&stop_); !s.ok()) return s;
    }
    absl::StatusOr<int> signal = stop_.Agree();
    if (!signal.ok()) return signal.status();
    if (absl::Status s = SaveWhatIsDue(sound, *signal != 0); !s.ok()) return s;
    const bool goes_on = std::any_of(sound.begin(), sound.end(), [](const Course* course) {
      return course->is_active() || course->lacks_evaluation();
    });
    if (*signal == 0 || !goes_on) return absl::OkStatus();
    // A launcher ends all as soon as one has gone: none goes before the checkpoint is there.
    if (absl::Status s = Meet(ranks(), "the last checkpoint"); !s.ok()) return s;
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
      if (absl::Status s = run_->integrity->Check(done); !s.ok()) return s;
    }
    for (Course* course : courses) {
      if (!course->SaveIsDue(stops)) continue;
      if (absl::Status s = course->Save(stops); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  absl::Status OneStep(const std::vector<Course*>& active, TrainStep* step) {
    EnterPhase(ranks(), Phase::kComputing,
               absl::StrCat("step ", active.front()->state().step() + 1));
    const double begin = setup_.env->MonotonicSeconds();
    const double busy_before = setup_.device->BusySeconds();
    const int64_t paged_in = step->paged_in(), paged_out = step->paged_out();
    const double waited_before = step->waited_seconds();
    std::vector<std::vector<MicroBatch>> batches(run_->courses.size());
    std::vector<CourseStep> steps(run_->courses.size(), {.is_active = false});
    for (size_t i = 0; i < run_->courses.size(); ++i) {
      if (!IsAmong(active, i)) continue;
      steps[i] = run_->courses[i]->PrepareStep(&batches[i]);
      steps[i].group = together_.members[i].group;
    }
    JoinedBatch joined;
    const auto give = [&](int64_t j, int64_t group) -> absl::StatusOr<MicroBatchInputs> {
      return RowsOf(group, steps, batches, j, &joined);
    };
    absl::StatusOr<std::vector<StepResult>> results = step->Run(steps, give);
    if (!results.ok()) return results.status();
    const double seconds = setup_.env->MonotonicSeconds() - begin;
    const int64_t tokens = TokensIn(batches);
    const double predicted = PredictedSeconds(tokens);
    speed_.Add(tokens, seconds, predicted);
    const StepCost cost{.seconds = seconds,
                        .predicted_seconds = predicted,
                        .busy_share = (setup_.device->BusySeconds() - busy_before) / seconds,
                        .communication_share = (step->waited_seconds() - waited_before) / seconds,
                        .paged_in_bytes = step->paged_in() - paged_in,
                        .paged_out_bytes = step->paged_out() - paged_out};
    if (absl::Status s = ExplainSkipped(steps, *results, batches, step); !s.ok()) return s;
    for (size_t i = 0; i < run_->courses.size(); ++i) {
      if (!steps[i].is_active) continue;
      if (absl::Status s = run_->courses[i]->FinishStep(batches[i], steps[i], (*results)[i], cost);
          !s.ok()) {
        return s;
      }
    }
    return absl::OkStatus();
  }

  // Of a group's active courses the j-th micro-batches. With several courses `joined` holds them.
  absl::StatusOr<MicroBatchInputs> RowsOf(int64_t group, const std::vector<CourseStep>& steps,
                                          const std::vector<std::vector<MicroBatch>>& batches,
                                          int64_t j, JoinedBatch* joined) {
    if (ranks() != nullptr) ranks()->control().Progress();
    if (is_alone()) return batches.front()[j].inputs();
    std::vector<const MicroBatch*> parts;
    for (size_t i = 0; i < batches.size(); ++i) {
      const bool has_rows = steps[i].is_active && steps[i].group == group;
      parts.push_back(has_rows ? &batches[i][j] : nullptr);
    }
    *joined = JoinBatches(parts);
    return joined->inputs();
  }

  // Once for each run of skipped steps, on all ranks alike: looking costs more than a step. Each
  // course's rows are looked at by themselves: others may have bad numbers of their own.
  absl::Status ExplainSkipped(const std::vector<CourseStep>& steps,
                              const std::vector<StepResult>& results,
                              const std::vector<std::vector<MicroBatch>>& batches,
                              TrainStep* step) {
    for (size_t i = 0; i < run_->courses.size(); ++i) {
      if (!steps[i].is_active || !run_->courses[i]->lacks_cause(results[i])) continue;
      std::vector<CourseStep> own(steps.size(), {.is_active = false});
      own[i] = steps[i];
      JoinedBatch joined;
      absl::StatusOr<std::string> found = step->FindNonFinite(
          own, [&](int64_t j, int64_t group) { return RowsOf(group, own, batches, j, &joined); });
      if (!found.ok()) return found.status();
      if (ranks() != nullptr) {
        absl::StatusOr<std::vector<std::string>> all =
            ranks()->control().AllGather("what is not finite", *found);
        if (!all.ok()) return all.status();
        for (size_t rank = all->size(); rank-- > 0;) {
          if (!(*all)[rank].empty()) *found = absl::StrCat((*all)[rank], " of rank ", rank);
        }
      }
      run_->courses[i]->set_cause(
          found->empty() ? "Run again, every micro-batch is finite: a sum of gradients overflowed, "
                           "or memory gave something else than was written"
                         : absl::StrCat("The first value that is not finite is in ", *found));
    }
    return absl::OkStatus();
  }

  static int64_t TokensIn(const std::vector<std::vector<MicroBatch>>& batches) {
    int64_t tokens = 0;
    for (const std::vector<MicroBatch>& batch : batches) {
      for (const MicroBatch& part : batch) tokens += int64_t(part.ids.size());
    }
    return tokens;
  }

  // Of a step over so many tokens on all ranks. A pass that is not full takes its share of a full
  // one's time.
  double PredictedSeconds(int64_t tokens) const {
    const double capacity = double(run_->plan.run.train->inputs.capacity.tokens);
    return TimeOfStep(run_->plan, setup_.rates, setup_.record.micro_batches,
                      double(tokens) / capacity / setup_.world())
        .SecondsOn(setup_.world(), NetworkOf(setup_.job.plan()));
  }

  bool IsAmong(const std::vector<Course*>& active, size_t index) const {
    return std::find(active.begin(), active.end(), run_->courses[index].get()) != active.end();
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
    std::vector<absl::Status> failures;
    for (size_t i = 0; i < run_->courses.size(); ++i) {
      Course& course = *run_->courses[i];
      if (!course.failure().ok()) failures.push_back(course.failure());
      if (!setup_.is_first() || !HasResult(i)) continue;
      if (absl::Status s = course.WriteResults(); !s.ok()) return s;
    }
    RecordSpeed();
    if (together_.report) {
      if (absl::Status s = together_.report(run_->courses); !s.ok()) return s;
    }
    for (const Together::Member& member : together_.members) {
      if (!setup_.is_first()) break;
      if (absl::Status s = FinishOutputFolder(*member.setup); !s.ok()) return s;
    }
    const std::vector<std::string> missed = MissedGates();
    if (!failures.empty()) {
      for (const std::string& line : missed) console_.Warning(line);
      return proto::ErrorOfExitCode(
          proto::ExitCodeOf(failures.front()),
          absl::StrJoin(failures, "\n", [](std::string* out, const absl::Status& failure) {
            absl::StrAppend(out, std::string(failure.message()));
          }));
    }
    if (absl::Status s = Meet(ranks(), "the end"); !s.ok()) return s;
    EnterPhase(ranks(), Phase::kFinished);
    return GateStatus(missed);
  }

  // Whether course `i` was trained to its end.
  bool HasResult(size_t i) const {
    return together_.members[i].round < rounds_ && run_->courses[i]->failure().ok();
  }

  // What of the results misses a gate. Of several courses the report has told what passes.
  std::vector<std::string> MissedGates() {
    std::vector<std::string> missed;
    for (size_t i = 0; setup_.is_first() && i < run_->courses.size(); ++i) {
      if (!HasResult(i)) continue;
      const Course& course = *run_->courses[i];
      for (const GateResult& gate : course.Gates()) {
        const std::string line = course.label() + DescribeGate(gate);
        if (!gate.passed) missed.push_back(line);
        if (gate.passed && is_alone()) console_.Line(line);
      }
    }
    return missed;
  }

  // For the plans of later runs on this machine. A run that had nothing left to do tells nothing.
  void RecordSpeed() {
    if (!setup_.is_first() || speed_.tokens == 0) return;
    console_.Line(speed_.Describe());
    proto::SpeedRecord record;
    record.set_unix_seconds(setup_.env->NowSeconds());
    record.set_device(setup_.device->info().name);
    record.set_model(setup_.job.has_model() ? setup_.job.model() : setup_.config_file);
    record.set_parameters(ParameterCount(setup_.spec));
    record.set_mode(proto::Mode::Value_Name(setup_.job.mode()));
    record.set_ranks(setup_.world());
    record.set_steps(speed_.steps);
    record.set_tokens_per_second(speed_.TokensPerSecond());
    record.set_predicted_tokens_per_second(speed_.PredictedTokensPerSecond());
    record.set_engine_version(kEngineVersion);
    const absl::Status kept = SpeedLog(setup_.env, UserCacheFolder()).Add(record);
    if (!kept.ok()) {
      console_.Warning(absl::StrCat("the run's speed is not kept for later plans: ",
                                    std::string(kept.message())));
    }
  }

  const Together& together_;
  const Setup& setup_;  // the first: what of it is shared by all
  const proto::Training& training_;
  Console& console_;
  StopRequest stop_;
  std::unique_ptr<PreparedRun> run_;
  TrainSpeed speed_;    // of all courses together
  int64_t rounds_ = 0;  // begun
  double begin_seconds_ = 0;
  int64_t begin_steps_ = 0;
};

}  // namespace

absl::Status Train(const Setup& setup, Console* console, StopFlag* stop) {
  return TrainTogether({.members = {{&setup, ""}}}, console, stop);
}

absl::Status TrainTogether(const Together& together, Console* console, StopFlag* stop) {
  TrainingRun run(together, console, stop);
  const absl::Status status = run.Run();
  if (Ranks* const ranks = together.members.front().setup->ranks; ranks != nullptr) {
    LeaveRanks(ranks, status);
  }
  return status;
}

}  // namespace qlora::engine
