// One course of a run: an adapter (or, in mode FULL, the model) on its way from its start to its
// last step, with a schedule, state, log, checkpoints and results of its own.
//
// `train` has one course, `sweep` as many as adapters: they share steps (engine/commands/train.h)
// and nothing else. A course among others leaves the bytes that it leaves alone.

#ifndef QLORA_ENGINE_COMMANDS_COURSE_H_
#define QLORA_ENGINE_COMMANDS_COURSE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/comm/stop_request.h"
#include "engine/commands/gates.h"
#include "engine/optim/schedule.h"
#include "engine/report/console.h"
#include "engine/report/run_log.h"
#include "engine/report/sidecar.h"
#include "engine/setup/setup.h"
#include "engine/step/kernel_selection.h"
#include "engine/step/step.h"

namespace qlora::engine {

// What a step cost, for the log; shared by all that took part.
struct StepCost {
  double seconds = 0;
  double predicted_seconds = 0;    // by the plan, for what the step held
  double busy_share = 0;           // of the time in which the device had work
  double communication_share = 0;  // and in which it only waited for other ranks
  int64_t paged_in_bytes = 0, paged_out_bytes = 0;
};

class Course {
 public:
  // Number `index` of the execution's courses. `label` begins its lines on the console ("r8: ");
  // empty where there is no other. `saves_beside`: PlanStateCopy has counted the memory for
  // checkpoints written beside training. All must outlive it.
  Course(const Setup& setup, int64_t index, std::string label, bool saves_beside,
         Execution* execution, Console* console);

  // Loads the checkpoint to go on from, if any.
  absl::Status Begin(const std::optional<std::string>& resume, const EarlierChoices& kernels);
  // Takes the output folder, opens the log; evaluates where it is the start, or where the run
  // before stopped before it had.
  absl::Status Open(StopRequest* stop);

  // Whether it takes part in the next step.
  bool is_active() const { return failure_.ok() && state_.step() < setup_.total_steps; }
  // Why it ended before its last step.
  const absl::Status& failure() const { return failure_; }

  // The next step's micro-batches and scalars.
  CourseStep PrepareStep(std::vector<MicroBatch>* batch) const;
  // Whether what spoils the steps being skipped now is not known yet.
  bool lacks_cause(const StepResult& result) const { return result.skipped && cause_.empty(); }
  void set_cause(const std::string& cause) { cause_ = cause; }
  // Takes the outcome into state and log. Gradients that stay non-finite end the course: failure().
  absl::Status FinishStep(const std::vector<MicroBatch>& batch, const CourseStep& step,
                          const StepResult& result, const StepCost& cost);
  // The error of a checkpoint that was written beside, as soon as it is known.
  absl::Status CheckWriter() { return writer_.Check(); }
  // What is due behind a step: evaluation, which a stop leaves to the run that goes on; a
  // checkpoint, also where the run is to stop.
  absl::Status EvaluateIfDue(StopRequest* stop);
  // Whether an evaluation is due and was not done.
  bool lacks_evaluation() const { return state_.lacks_evaluation(); }
  bool SaveIsDue(bool stops) const { return stops || IsDue(training_.save_steps()); }
  // Bad numbers are not saved: where there are other courses they end this one, failure().
  absl::Status Save(bool stops);

  // Writes the results behind the last step.
  absl::Status WriteResults();
  // Its job's gates against its last evaluation or, where that is the result, the best one.
  std::vector<GateResult> Gates() const;

  const Setup& setup() const { return setup_; }
  const std::string& label() const { return label_; }
  const proto::RunState& state() const { return state_; }
  // Of the last step: "loss 1.2345  lr 2.00e-04  norm 0.123  812 tok/s  44% of light".
  std::string Progress() const;

 private:
  void KeepSampleHashes();
  bool IsDue(int64_t every) const;
  void Account(const StepResult& result);
  // Ends the course before its last step.
  void Fail(absl::Status failure);
  void MeasureSpeed(const std::vector<MicroBatch>& batch, const StepCost& cost);
  TrainRecord Record(const StepCost& cost) const;
  absl::Status LogStep(const TrainRecord& record);
  absl::Status Evaluate(StopRequest* stop);
  void KeepIfBest(const EvalResult& result);
  OutputFiles Files() const;
  void Say(const std::string& text) { console_.Line(label_ + text); }

  const Setup& setup_;
  const proto::Training& training_;
  const int64_t index_;
  const std::string label_;
  Execution& execution_;
  Console& console_;
  const Schedule schedule_;
  CheckpointWriter writer_;
  std::optional<RunLog> log_;
  proto::RunState state_;
  absl::Status failure_;
  std::string cause_;  // of the skipped steps just before, for people
  TrainSpeed speed_;
  // Of the last step.
  StepResult last_;
  double rate_ = 0, tokens_per_second_ = 0, share_of_light_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_COURSE_H_
