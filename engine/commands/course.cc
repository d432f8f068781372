#include "engine/commands/course.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/checkpoint/output_folder.h"
#include "engine/checkpoint/state_file.h"
#include "engine/commands/evaluate.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/manifest.h"
#include "engine/io/model_files.h"
#include "engine/plan/host_memory.h"
#include "engine/plan/useful_flops.h"
#include "engine/report/loss_curve.h"
#include "engine/setup/join_ranks.h"
#include "proto/exit_codes.h"

namespace qlora::engine {

Course::Course(const Setup& setup, int64_t index, std::string label, bool saves_beside,
               Execution* execution, Console* console)
    : setup_(setup),
      training_(setup.job.training()),
      index_(index),
      label_(std::move(label)),
      execution_(*execution),
      console_(*console),
      schedule_(ScheduleOf(training_, setup.total_steps)),
      writer_(setup.env, execution,
              {.output_dir = setup.job.output_dir(),
               .keep_last = training_.save_total_limit(),
               .beside = saves_beside,
               .course = index}) {}

absl::Status Course::Begin(const std::optional<std::string>& resume,
                           const EarlierChoices& kernels) {
  state_.set_job_hash(setup_.job_hash);
  state_.set_base_hash(setup_.base_hash);
  state_.set_data_hash(setup_.train_data.report.sha256);
  KeepSampleHashes();
  for (const auto& [key, variant] : kernels) (*state_.mutable_kernel_choices())[key] = variant;
  if (!resume.has_value()) return absl::OkStatus();
  absl::StatusOr<proto::RunState> state = LoadCheckpoint(setup_.env, *resume, &execution_, index_);
  if (!state.ok()) return proto::Annotate(state.status(), *resume);
  state_ = *std::move(state);
  KeepSampleHashes();
  Say(absl::StrCat("going on from ", *resume));
  return absl::OkStatus();
}

// A run without held-out data for a while goes on being held against those that it had.
void Course::KeepSampleHashes() {
  state_.set_samples_hash(setup_.samples_hash);
  if (!setup_.held_out_hash.empty()) state_.set_held_out_hash(setup_.held_out_hash);
}

absl::Status Course::Open(StopRequest* stop) {
  if (setup_.is_first()) {
    if (absl::Status s = TakeOutputFolder(setup_, state_.step() > 0); !s.ok()) return s;
    absl::StatusOr<RunLog> log = RunLog::Open(setup_.env, setup_.job.output_dir(), state_);
    if (!log.ok()) return AsInputError(log.status());
    log_.emplace(*std::move(log));
  }
  const bool is_due = state_.step() == 0 || state_.lacks_evaluation();
  state_.set_lacks_evaluation(is_due && setup_.eval_batches.has_value());
  return state_.lacks_evaluation() ? Evaluate(stop) : absl::OkStatus();
}

CourseStep Course::PrepareStep(std::vector<MicroBatch>* batch) const {
  *batch = setup_.train_batches->Step(state_.step());
  return {.seed = setup_.job.seed(),
          .step = state_.step(),
          .updates = state_.updates(),
          .learning_rate = LearningRate(schedule_, state_.updates()),
          .trained_tokens = Batcher::TrainedTokens(*batch)};
}

absl::Status Course::FinishStep(const std::vector<MicroBatch>& batch, const CourseStep& step,
                                const StepResult& result, const StepCost& cost) {
  state_.set_step(step.step + 1);
  last_ = result;
  rate_ = step.learning_rate;
  Account(result);
  if (!failure_.ok()) return absl::OkStatus();
  MeasureSpeed(batch, cost);
  return IsDue(training_.logging_steps()) ? LogStep(Record(cost)) : absl::OkStatus();
}

bool Course::IsDue(int64_t every) const {
  const int64_t done = state_.step();
  return done == setup_.total_steps || (every > 0 && done % every == 0);
}

void Course::Account(const StepResult& result) {
  if (!result.skipped) {
    state_.set_updates(state_.updates() + 1);
    state_.set_consecutive_nonfinite(0);
    cause_.clear();
    state_.set_trained_tokens(state_.trained_tokens() + result.trained_tokens);
    state_.set_loss_since_log(state_.loss_since_log() + result.loss_sum);
    state_.set_tokens_since_log(state_.tokens_since_log() + result.trained_tokens);
    return;
  }
  state_.set_consecutive_nonfinite(state_.consecutive_nonfinite() + 1);
  console_.Warning(absl::StrCat(label_, "step ", state_.step(),
                                ": gradients or loss are not finite; the update was skipped. ",
                                cause_));
  if (state_.consecutive_nonfinite() < training_.max_consecutive_nonfinite()) return;
  Fail(proto::NumbersBadError(absl::StrCat(
      label_, state_.consecutive_nonfinite(),
      " steps in a row had gradients or a loss that are not finite and changed nothing. ", cause_,
      ". Where neither model nor data is at fault, a lower training.learning_rate usually helps")));
}

void Course::Fail(absl::Status failure) {
  failure_ = std::move(failure);
  if (label_.empty()) return;
  console_.Warning(absl::StrCat(label_, "ends at step ", state_.step(), "; the others go on"));
}

void Course::MeasureSpeed(const std::vector<MicroBatch>& batch, const StepCost& cost) {
  int64_t tokens = 0;
  double pairs = 0;
  for (const MicroBatch& b : batch) {
    tokens += int64_t(b.ids.size());
    for (const DocumentBounds& d : b.documents) pairs += 0.5 * d.query_rows * (d.query_rows + 1.0);
  }
  tokens_per_second_ = double(tokens) / cost.seconds;
  speed_.Add(tokens, cost.seconds, cost.predicted_seconds);
  const double flops = UsefulFlops(setup_.spec, setup_.job.mode() == proto::Mode::FULL,
                                   setup_.targets.ParameterCount(), tokens, pairs);
  share_of_light_ = flops / (setup_.rates.matmul_flops * setup_.world()) / cost.seconds;
}

std::string Course::Progress() const {
  return absl::StrFormat("loss %.4f  lr %.2e  norm %.3f  %.0f tok/s  %.0f%% of light",
                         last_.loss_sum / double(std::max<int64_t>(1, last_.trained_tokens)), rate_,
                         last_.gradient_norm, tokens_per_second_, 100 * share_of_light_);
}

TrainRecord Course::Record(const StepCost& cost) const {
  const Plan& plan = execution_.plan();
  const double tokens = double(state_.tokens_since_log());
  return {.step = state_.step(),
          .epoch = setup_.train_batches->EpochAt(state_.step()),
          .loss = tokens > 0 ? std::optional(state_.loss_since_log() / tokens) : std::nullopt,
          .learning_rate = rate_,
          .grad_norm = last_.gradient_norm,
          .tokens_per_second = tokens_per_second_,
          .share_of_light = share_of_light_,
          .recompute_share = cost.busy_share * plan.recompute_seconds / plan.micro_batch_seconds,
          .dequantize_share = cost.busy_share * plan.dequantize_seconds / plan.micro_batch_seconds,
          .communication_share = cost.communication_share,
          .host_gap_share = 1 - cost.busy_share - cost.communication_share,
          .paged_in_bytes = cost.paged_in_bytes,
          .paged_out_bytes = cost.paged_out_bytes};
}

absl::Status Course::LogStep(const TrainRecord& record) {
  state_.set_loss_since_log(0);
  state_.set_tokens_since_log(0);
  if (!setup_.is_first()) return absl::OkStatus();
  if (absl::Status s = log_->Train(record, &state_); !s.ok()) return AsInputError(s);
  if (console_.live()) return absl::OkStatus();
  const std::string loss = record.loss ? absl::StrFormat("%.4f", *record.loss) : "not finite";
  Say(absl::StrFormat(
      "step %d/%d  epoch %.2f  loss %s  lr %.2e  grad norm %.3f  %.0f tokens/s  %.0f%% of "
      "light (recompute %.0f%%, dequantization %.0f%%, communication %.0f%%, host %.0f%%)",
      record.step, setup_.total_steps, record.epoch, loss, record.learning_rate, record.grad_norm,
      record.tokens_per_second, 100 * record.share_of_light, 100 * record.recompute_share,
      100 * record.dequantize_share, 100 * record.communication_share,
      100 * record.host_gap_share));
  if (record.paged_in_bytes + record.paged_out_bytes > 0) {
    console_.Line(absl::StrCat("  paged states: ", FormatBytes(record.paged_in_bytes), " in, ",
                               FormatBytes(record.paged_out_bytes), " out in this step"));
  }
  return absl::OkStatus();
}

absl::Status Course::EvaluateIfDue(StopRequest* stop) {
  state_.set_lacks_evaluation(setup_.eval_batches && IsDue(training_.eval_steps()));
  if (!state_.lacks_evaluation()) return absl::OkStatus();
  const absl::StatusOr<int> signal = stop->Agree();
  if (!signal.ok()) return signal.status();
  return *signal == 0 ? Evaluate(stop) : absl::OkStatus();
}

absl::Status Course::Evaluate(StopRequest* stop) {
  console_.Live(label_ + "evaluating");
  EnterPhase(setup_.ranks, Phase::kEvaluating);
  absl::StatusOr<EvalResult> result =
      EvaluateLoss(&execution_, *setup_.eval_batches, {}, setup_.ranks, index_, stop);
  if (absl::IsCancelled(result.status())) return absl::OkStatus();
  if (!result.ok()) return result.status();
  if (setup_.record.generate.has_value()) {
    absl::StatusOr<int64_t> exact =
        CountExactMatches(&execution_, setup_.eval_data, *setup_.tokenizer,
                          {.max_new_tokens = setup_.job.eval().max_new_tokens(),
                           .stop_ids = StopIds(setup_),
                           .course = index_},
                          setup_.ranks, stop);
    if (absl::IsCancelled(exact.status())) return absl::OkStatus();
    if (!exact.ok()) return exact.status();
    result->exact_matches = *exact;
  }
  Say(absl::StrCat("step ", state_.step(), "  held out: ", DescribeEval(*result)));
  if (setup_.is_first()) {
    const double epoch = setup_.train_batches->EpochAt(state_.step());
    if (absl::Status s = log_->Eval(state_.step(), epoch, *result, &state_); !s.ok()) {
      return AsInputError(s);
    }
  }
  KeepIfBest(*result);
  state_.set_lacks_evaluation(false);
  return absl::OkStatus();
}

// Only a state that is saved can be the best one.
void Course::KeepIfBest(const EvalResult& result) {
  const bool is_saved = state_.step() > 0 && IsDue(training_.save_steps());
  if (!std::isfinite(result.Loss())) return;
  if (is_saved && (!state_.has_best_eval_loss() || result.Loss() < state_.best_eval_loss())) {
    state_.set_best_eval_loss(result.Loss());
    state_.set_best_checkpoint(CheckpointName(state_.step()));
  }
}

absl::Status Course::Save(bool stops) {
  // Where the states are not shared out the first rank has all of them.
  HostExchange* const exchange =
      setup_.record.storage.shard_states ? setup_.exchange.get() : nullptr;
  if (!setup_.is_first() && exchange == nullptr) return absl::OkStatus();
  EnterPhase(setup_.ranks, Phase::kSaving, CheckpointName(state_.step()));
  if (!setup_.is_first()) return SendStates(&execution_, exchange);
  if (absl::Status s = log_->Sync(); !s.ok()) return AsInputError(s);
  // Where nothing is trained meanwhile it need not be written beside.
  const bool now = stops || state_.step() == setup_.total_steps;
  absl::Status saved = writer_.Save(Files(), state_, now, exchange);
  // Bad numbers of an adapter are no end to the others; what is wrong with the disk is.
  if (label_.empty() || proto::ExitCodeOf(saved) != proto::kExitNumbersBad) return saved;
  Fail(proto::NumbersBadError(absl::StrCat(label_, std::string(saved.message()))));
  return absl::OkStatus();
}

OutputFiles Course::Files() const {
  OutputFiles files;
  files.adapter = {.base_model_name_or_path = setup_.job.model(),
                   .r = setup_.job.lora().r(),
                   .lora_alpha = setup_.job.lora().lora_alpha(),
                   .lora_dropout = setup_.job.lora().lora_dropout(),
                   .use_rslora = setup_.job.lora().use_rslora(),
                   .target_modules = setup_.targets.suffixes};
  files.residual_note = setup_.residual_note;
  files.tokenizer_folder = setup_.tokenizer_folder;
  files.config_file = setup_.config_file;
  files.trainer = {.save_steps = training_.save_steps(),
                   .logging_steps = training_.logging_steps(),
                   .eval_steps = training_.eval_steps(),
                   .train_batch_size = training_.per_device_train_batch_size(),
                   .max_steps = setup_.total_steps,
                   .num_train_epochs = setup_.train_batches->EpochAt(setup_.total_steps)};
  return files;
}

absl::Status Course::WriteResults() {
  EnterPhase(setup_.ranks, Phase::kSaving, "the result");
  if (training_.load_best_model_at_end() && !state_.best_checkpoint().empty() &&
      state_.best_checkpoint() != CheckpointName(state_.step())) {
    const std::string best = JoinPath(setup_.job.output_dir(), state_.best_checkpoint());
    // It may be days old.
    if (absl::Status s = VerifyFolder(setup_.env, best).status(); !s.ok()) {
      return proto::Annotate(
          AsInputError(s),
          "the checkpoint with the best held-out loss can't be used (with "
          "training.load_best_model_at_end: false the same command takes the last step's weights)");
    }
    absl::StatusOr<proto::RunState> loaded = LoadCheckpoint(setup_.env, best, &execution_, index_);
    if (!loaded.ok()) return loaded.status();
    Say(absl::StrCat("the best held-out loss was that of ", best, ": its weights are the result"));
  }
  const std::string& folder = setup_.job.output_dir();
  if (absl::Status s = WriteFinalOutput(setup_.env, folder, &execution_, Files(), state_, index_);
      !s.ok()) {
    return AsInputError(s);
  }
  // A run that was done already leaves the sidecar of the one that did it.
  if (speed_.tokens > 0) {
    if (absl::Status s = WriteSidecar(setup_, execution_.plan(), state_, speed_); !s.ok()) {
      return AsInputError(s);
    }
  }
  const std::string curve = JoinPath(folder, "loss_curve.svg");
  if (absl::Status s = AtomicWriteFile(setup_.env, curve, LossCurveSvg(state_)); !s.ok()) {
    return AsInputError(s);
  }
  const bool full = setup_.job.mode() == proto::Mode::FULL;
  Say(absl::StrCat("done: ", JoinPath(folder, full ? kModelFile : kAdapterModelFile),
                   "; log: ", JoinPath(folder, "metrics.jsonl"), " and ", JoinPath(folder, "runs"),
                   " (TensorBoard), ", curve, "; peak memory ", FormatBytes(PeakHostMemory())));
  return absl::OkStatus();
}

std::vector<GateResult> Course::Gates() const {
  return CheckGates(setup_.job.gates(),
                    TrainingMetrics(state_, training_.load_best_model_at_end()));
}

}  // namespace qlora::engine
