#include "engine/train.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/checkpoint.h"
#include "engine/checkpoint_writer.h"
#include "engine/evaluate.h"
#include "engine/gates.h"
#include "engine/host_memory.h"
#include "engine/input_error.h"
#include "engine/integrity.h"
#include "engine/io/atomic_file.h"
#include "engine/job_identity.h"
#include "engine/load_model.h"
#include "engine/optim/schedule.h"
#include "engine/optim/state_file.h"
#include "engine/output_folder.h"
#include "engine/report/loss_curve.h"
#include "engine/report/run_log.h"
#include "engine/report/run_summary.h"
#include "engine/report/sidecar.h"
#include "engine/step.h"
#include "engine/useful_flops.h"

namespace qlora::engine {
namespace {

class TrainingRun {
 public:
  TrainingRun(const Setup& setup, Console* console, const volatile std::sig_atomic_t* stop)
      : setup_(setup),
        training_(setup.job.training()),
        console_(*console),
        stop_(*stop),
        record_(setup.record) {}

  absl::Status Run() {
    if (ranks() != nullptr) {
      if (absl::Status s = AgreeOnJob(); !s.ok()) return s;
      if (absl::Status s = ranks()->OpenComm(setup_.device.get()); !s.ok()) return s;
    }
    console_.Line(StartSummary(setup_));
    if (absl::Status s = MakePlan(); !s.ok()) return s;
    absl::StatusOr<std::optional<std::string>> resume = FindStart();
    if (!resume.ok()) return resume.status();
    if (resume->has_value()) {
      if (absl::Status s = TakeKernelsOf(**resume); !s.ok()) return s;
    } else if (ranks() != nullptr) {
      if (absl::Status s = TakeKernelsOfFirst(); !s.ok()) return s;
    }
    if (absl::Status s = Prepare(*resume); !s.ok()) return s;
    const absl::Status trained = TrainSteps();
    console_.EndLive();
    if (!trained.ok()) return trained;
    return Finish();
  }

 private:
  Ranks* ranks() const { return setup_.ranks; }

  void Enter(Phase phase, absl::string_view detail = "") {
    if (ranks() != nullptr) ranks()->control().Enter(phase, std::string(detail));
  }

  // Comes back when all ranks are here.
  absl::Status Meet(const std::string& what) {
    return ranks() == nullptr ? absl::OkStatus() : ranks()->control().AllGather(what, "").status();
  }

  // Ranks that train something else, or were built otherwise, must not be summed.
  absl::Status AgreeOnJob() {
    const std::string mine = absl::StrCat(setup_.job_text, "model ", setup_.base_hash, "\ndata ",
                                          setup_.train_data.report.sha256, "\nheld out ",
                                          setup_.eval_data.report.sha256, "\n");
    absl::StatusOr<std::vector<std::string>> all = ranks()->control().AllGather("the job", mine);
    if (!all.ok()) return all.status();
    for (size_t rank = 1; rank < all->size(); ++rank) {
      if ((*all)[rank] == (*all)[0]) continue;
      return proto::BadJobError(absl::StrCat("ranks disagree on what to train (- rank 0, + rank ",
                                             rank, "):\n", DifferingLines((*all)[0], (*all)[rank]),
                                             "Give all of them the same job, model and data"));
    }
    return absl::OkStatus();
  }

  // The checkpoint to go on from: what rank 0, which wrote it, finds.
  absl::StatusOr<std::optional<std::string>> FindStart() {
    std::string found;
    if (setup_.is_first()) {
      absl::StatusOr<std::optional<std::string>> resume = CheckOutputFolder(setup_, &console_);
      if (!resume.ok() || ranks() == nullptr) return resume;
      found = resume->value_or("");
    }
    absl::StatusOr<std::string> agreed = ranks()->control().FromFirst("where to begin", found);
    if (!agreed.ok()) return agreed.status();
    return agreed->empty() ? std::nullopt : std::optional<std::string>(*agreed);
  }

  // Into a cache of the quantized base one rank writes; the others read what it left.
  absl::Status Load() {
    const bool in_turns = ranks() != nullptr && !setup_.job.quantization().quantize_cache().empty();
    const std::string turn = "the first rank's quantized base";
    if (in_turns && !setup_.is_first()) {
      if (absl::Status s = Meet(turn); !s.ok()) return s;
    }
    Enter(Phase::kLoading, "the model");
    absl::Status loaded =
        LoadModel(setup_, setup_.job.lora().init_from(), execution_.get(), &console_);
    if (!loaded.ok() || !in_turns || !setup_.is_first()) return loaded;
    return Meet(turn);
  }

  absl::Status MakePlan() {
    absl::StatusOr<Plan> plan =
        engine::MakePlan(setup_.spec, record_, *setup_.device, setup_.rates, setup_.limits);
    if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
    plan_ = *std::move(plan);
    saves_beside_ = PlanStateCopy(setup_, &plan_);
    console_.Line(PlanSummary(setup_, plan_));
    return absl::OkStatus();
  }

  // Goes on with the kernels that the run began with: others round otherwise.
  absl::Status TakeKernelsOf(const std::string& checkpoint) {
    absl::StatusOr<proto::RunState> state = ReadRunState(setup_.env, checkpoint);
    if (!state.ok()) return proto::Annotate(state.status(), checkpoint);
    return TakeKernels(*state);
  }

  // Where kernels are timed, ranks may have measured differently.
  absl::Status TakeKernelsOfFirst() {
    proto::RunState state;
    StoreKernels(&state);
    absl::StatusOr<std::string> first =
        ranks()->control().FromFirst("the kernels", state.SerializeAsString());
    if (!first.ok()) return first.status();
    if (!state.ParseFromString(*first)) return absl::InternalError("the kernels can't be read");
    return TakeKernels(state);
  }

  absl::Status TakeKernels(const proto::RunState& state) {
    const EarlierChoices earlier(state.kernel_choices().begin(), state.kernel_choices().end());
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

  void StoreKernels(proto::RunState* state) const {
    for (const auto& [key, variant] : ChoicesNow())
      (*state->mutable_kernel_choices())[key] = variant;
  }

  absl::Status Prepare(const std::optional<std::string>& resume) {
    absl::StatusOr<std::unique_ptr<Execution>> execution =
        Execution::Create(plan_, setup_.device.get());
    if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
    execution_ = *std::move(execution);
    writer_.emplace(setup_.env, execution_.get(),
                    CheckpointWriter::Options{.output_dir = setup_.job.output_dir(),
                                              .keep_last = training_.save_total_limit(),
                                              .beside = saves_beside_});
    if (absl::Status s = Load(); !s.ok()) return s;
    if (setup_.is_first()) {
      if (absl::Status s = TakeOutputFolder(setup_); !s.ok()) return s;
    }
    schedule_ = ScheduleOf(training_, setup_.total_steps);
    state_.set_job_hash(setup_.job_hash);
    state_.set_base_hash(setup_.base_hash);
    state_.set_data_hash(setup_.train_data.report.sha256);
    StoreKernels(&state_);
    if (resume.has_value()) {
      absl::StatusOr<proto::RunState> state = LoadCheckpoint(setup_.env, *resume, execution_.get());
      if (!state.ok()) return proto::Annotate(state.status(), *resume);
      state_ = *std::move(state);
      console_.Line(absl::StrCat("going on from ", *resume));
    }
    absl::StatusOr<Integrity> integrity = Integrity::Create(execution_.get(), ranks());
    if (!integrity.ok()) return integrity.status();
    integrity_.emplace(*std::move(integrity));
    if (absl::Status s = Meet("everything is loaded"); !s.ok()) return s;
    if (!setup_.is_first()) {
      return resume.has_value() || !setup_.eval_batches ? absl::OkStatus() : EvaluateNow();
    }
    absl::StatusOr<RunLog> log = RunLog::Open(setup_.env, setup_.job.output_dir(), state_.step());
    if (!log.ok()) return AsInputError(log.status());
    log_.emplace(*std::move(log));
    if (!resume.has_value() && setup_.eval_batches) return EvaluateNow();
    return absl::OkStatus();
  }

  absl::Status TrainSteps() {
    TrainStep step(execution_.get(),
                   {.seed = setup_.job.seed(),
                    .micro_batches = training_.gradient_accumulation_steps(),
                    .tree_sum = training_.gradient_sum() == proto::GradientSum::TREE,
                    .beta1 = training_.adam_beta1(),
                    .beta2 = training_.adam_beta2()},
                   ranks() == nullptr ? nullptr : &ranks()->comm());
    begin_seconds_ = setup_.env->MonotonicSeconds();
    begin_step_ = state_.step();
    while (state_.step() < setup_.total_steps) {
      if (absl::Status s = OneStep(&step); !s.ok()) return s;
      if (absl::Status s = writer_->Check(); !s.ok()) return s;
      const int64_t done = state_.step();
      const bool is_last = done == setup_.total_steps;
      if (IsDue(training_.eval_steps(), done, is_last) && setup_.eval_batches) {
        if (absl::Status s = EvaluateNow(); !s.ok()) return s;
      }
      absl::StatusOr<int> agreed = AgreeOnStop();
      if (!agreed.ok()) return agreed.status();
      const int signal = *agreed;
      const bool saves = IsDue(training_.save_steps(), done, is_last) || signal != 0;
      if (saves || done % kIntegritySteps == 0) {
        if (absl::Status s = integrity_->Check(done); !s.ok()) return s;
      }
      if (saves) {
        if (absl::Status s = Save(is_last || signal != 0); !s.ok()) return s;
      }
      if (signal != 0 && !is_last) {
        return proto::StoppedError(
            signal, absl::StrCat("stopped after step ", done, " of ", setup_.total_steps,
                                 "; the same command goes on from there"));
      }
    }
    return absl::OkStatus();
  }

  static bool IsDue(int64_t every, int64_t done, bool is_last) {
    return is_last || (every > 0 && done % every == 0);
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

  absl::Status OneStep(TrainStep* step) {
    Enter(Phase::kComputing, absl::StrCat("step ", state_.step() + 1));
    const double begin = setup_.env->MonotonicSeconds();
    const double busy_before = setup_.device->BusySeconds();
    const int64_t index = state_.step();
    const std::vector<MicroBatch> batch = setup_.train_batches->Step(index);
    const int64_t trained = Batcher::TrainedTokens(batch);
    const int64_t paged_in = step->paged_in(), paged_out = step->paged_out();
    const double waited_before = step->waited_seconds();
    const double rate = LearningRate(schedule_, state_.updates());
    absl::StatusOr<StepResult> result = step->Run(
        index, state_.updates(), rate, trained, [&](int64_t j) -> absl::StatusOr<MicroBatchInputs> {
          if (ranks() != nullptr) ranks()->control().Progress();
          return batch[j].inputs();
        });
    if (!result.ok()) return result.status();
    state_.set_step(index + 1);
    if (absl::Status s = Account(*result); !s.ok()) return s;

    const double seconds = setup_.env->MonotonicSeconds() - begin;
    MeasureSpeed(batch, seconds);
    ShowProgress(*result, rate);
    const bool is_last = state_.step() == setup_.total_steps;
    if (!IsDue(training_.logging_steps(), state_.step(), is_last)) return absl::OkStatus();
    TrainRecord record = Record(*result, rate);
    const double busy = (setup_.device->BusySeconds() - busy_before) / seconds;
    record.recompute_share = busy * plan_.recompute_seconds / plan_.micro_batch_seconds;
    record.dequantize_share = busy * plan_.dequantize_seconds / plan_.micro_batch_seconds;
    record.communication_share = (step->waited_seconds() - waited_before) / seconds;
    record.host_gap_share = 1 - busy - record.communication_share;
    record.paged_in_bytes = step->paged_in() - paged_in;
    record.paged_out_bytes = step->paged_out() - paged_out;
    return LogStep(record);
  }

  absl::Status Account(const StepResult& result) {
    if (!result.skipped) {
      state_.set_updates(state_.updates() + 1);
      state_.set_consecutive_nonfinite(0);
      state_.set_trained_tokens(state_.trained_tokens() + result.trained_tokens);
      state_.set_loss_since_log(state_.loss_since_log() + result.loss_sum);
      state_.set_tokens_since_log(state_.tokens_since_log() + result.trained_tokens);
      return absl::OkStatus();
    }
    state_.set_consecutive_nonfinite(state_.consecutive_nonfinite() + 1);
    console_.Warning(absl::StrCat("step ", state_.step(),
                                  ": gradients or loss are not finite; the update was skipped"));
    if (state_.consecutive_nonfinite() < training_.max_consecutive_nonfinite())
      return absl::OkStatus();
    return proto::NumbersBadError(absl::StrCat(
        state_.consecutive_nonfinite(),
        " steps in a row had gradients or a loss that are not finite; the last checkpoint is from "
        "before them. A lower training.learning_rate usually helps"));
  }

  void MeasureSpeed(const std::vector<MicroBatch>& batch, double seconds) {
    int64_t tokens = 0;
    double pairs = 0;
    for (const MicroBatch& b : batch) {
      tokens += int64_t(b.ids.size());
      for (const DocumentBounds& d : b.documents)
        pairs += 0.5 * d.query_rows * (d.query_rows + 1.0);
    }
    tokens_per_second_ = double(tokens) / seconds;
    speed_.tokens += tokens;
    speed_.seconds += seconds;
    // A micro-batch that is not full takes its share of a full one's time.
    speed_.predicted_seconds += plan_.micro_batch_seconds * double(tokens) /
                                    double(std::max<int64_t>(1, setup_.record.train.tokens)) +
                                plan_.update_seconds;
    const double flops = UsefulFlops(setup_.spec, setup_.job.mode() == proto::Mode::FULL,
                                     setup_.targets.ParameterCount(), tokens, pairs);
    share_of_light_ = flops / (setup_.rates.matmul_flops * setup_.world()) / seconds;
  }

  void ShowProgress(const StepResult& result, double rate) {
    const double elapsed = setup_.env->MonotonicSeconds() - begin_seconds_;
    const double left =
        elapsed / double(state_.step() - begin_step_) * double(setup_.total_steps - state_.step());
    console_.Live(absl::StrFormat(
        "%s %d/%d  loss %.4f  lr %.2e  norm %.3f  %.0f tok/s  %.0f%% of light  %s  left %s",
        Bar(double(state_.step()) / double(setup_.total_steps), 20), state_.step(),
        setup_.total_steps, result.loss_sum / double(std::max<int64_t>(1, result.trained_tokens)),
        rate, result.gradient_norm, tokens_per_second_, 100 * share_of_light_,
        FormatBytes(ResidentHostMemory()), FormatDuration(left)));
  }

  TrainRecord Record(const StepResult& result, double rate) const {
    const double tokens = double(std::max<uint64_t>(1, state_.tokens_since_log()));
    return {.step = state_.step(),
            .epoch = setup_.train_batches->EpochAt(state_.step()),
            .loss = state_.loss_since_log() / tokens,
            .learning_rate = rate,
            .grad_norm = result.gradient_norm,
            .tokens_per_second = tokens_per_second_,
            .share_of_light = share_of_light_};
  }

  absl::Status LogStep(const TrainRecord& record) {
    state_.set_loss_since_log(0);
    state_.set_tokens_since_log(0);
    if (!setup_.is_first()) return absl::OkStatus();
    if (absl::Status s = log_->Train(record, &state_); !s.ok()) return AsInputError(s);
    if (!console_.live()) {
      console_.Line(absl::StrFormat(
          "step %d/%d  epoch %.2f  loss %.4f  lr %.2e  grad norm %.3f  %.0f tokens/s  %.0f%% of "
          "light (recompute %.0f%%, dequantization %.0f%%, communication %.0f%%, host %.0f%%)",
          record.step, setup_.total_steps, record.epoch, record.loss, record.learning_rate,
          record.grad_norm, record.tokens_per_second, 100 * record.share_of_light,
          100 * record.recompute_share, 100 * record.dequantize_share,
          100 * record.communication_share, 100 * record.host_gap_share));
      if (record.paged_in_bytes + record.paged_out_bytes > 0) {
        console_.Line(absl::StrCat("  paged states: ", FormatBytes(record.paged_in_bytes), " in, ",
                                   FormatBytes(record.paged_out_bytes), " out in this step"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status EvaluateNow() {
    console_.Live("evaluating");
    Enter(Phase::kEvaluating);
    absl::StatusOr<EvalResult> result =
        EvaluateLoss(execution_.get(), *setup_.eval_batches, {}, ranks());
    if (!result.ok()) return result.status();
    if (setup_.record.generate.has_value()) {
      GenerationOptions options{.max_new_tokens = setup_.job.eval().max_new_tokens(),
                                .stop_ids = StopIds(setup_)};
      absl::StatusOr<int64_t> exact = CountExactMatches(execution_.get(), setup_.eval_data,
                                                        *setup_.tokenizer, options, ranks());
      if (!exact.ok()) return exact.status();
      result->exact_matches = *exact;
    }
    console_.Line(absl::StrCat("step ", state_.step(), "  held out: ", DescribeEval(*result)));
    const double epoch = setup_.train_batches->EpochAt(state_.step());
    if (!setup_.is_first()) return KeepIfBest(*result);
    if (absl::Status s = log_->Eval(state_.step(), epoch, *result, &state_); !s.ok()) {
      return AsInputError(s);
    }
    return KeepIfBest(*result);
  }

  // Only a state that is saved can be the best one.
  absl::Status KeepIfBest(const EvalResult& result) {
    const bool is_last = state_.step() == setup_.total_steps;
    const bool is_saved =
        state_.step() > 0 && IsDue(training_.save_steps(), state_.step(), is_last);
    if (is_saved && (!state_.has_best_eval_loss() || result.Loss() < state_.best_eval_loss())) {
      state_.set_best_eval_loss(result.Loss());
      state_.set_best_checkpoint(CheckpointName(state_.step()));
    }
    return absl::OkStatus();
  }

  // `now`: nothing is trained meanwhile.
  absl::Status Save(bool now) {
    std::optional<HostExchange> exchange;
    if (setup_.record.storage.shard_states) {
      exchange.emplace(&ranks()->comm(), setup_.device.get(), execution_->LoadingScratch(),
                       plan_.placement.bytes);
    }
    if (!setup_.is_first() && !exchange) return absl::OkStatus();
    Enter(Phase::kSaving, CheckpointName(state_.step()));
    if (!setup_.is_first()) return SendStates(execution_.get(), &*exchange);
    if (absl::Status s = log_->Sync(); !s.ok()) return AsInputError(s);
    return writer_->Save(Files(), state_, now, exchange ? &*exchange : nullptr);
  }

  OutputFiles Files() const {
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

  absl::Status Finish() {
    if (setup_.is_first()) {
      if (absl::Status s = WriteResults(); !s.ok()) return s;
    }
    if (absl::Status s = Meet("the end"); !s.ok()) return s;
    Enter(Phase::kFinished);
    if (!setup_.is_first()) return absl::OkStatus();
    return ReportGates(setup_.job.gates(),
                       TrainingMetrics(state_, training_.load_best_model_at_end()), &console_);
  }

  absl::Status WriteResults() {
    Enter(Phase::kSaving, "the result");
    if (training_.load_best_model_at_end() && !state_.best_checkpoint().empty() &&
        state_.best_checkpoint() != CheckpointName(state_.step())) {
      const std::string best = JoinPath(setup_.job.output_dir(), state_.best_checkpoint());
      absl::StatusOr<proto::RunState> loaded = LoadCheckpoint(setup_.env, best, execution_.get());
      if (!loaded.ok()) return loaded.status();
      console_.Line(absl::StrCat("the best held-out loss was that of ", best,
                                 ": its weights are the result"));
    }
    const std::string& folder = setup_.job.output_dir();
    if (absl::Status s = WriteFinalOutput(setup_.env, folder, execution_.get(), Files(), state_);
        !s.ok()) {
      return AsInputError(s);
    }
    // A run that was done already leaves the sidecar of the one that did it.
    if (speed_.tokens > 0) {
      if (absl::Status s = WriteSidecar(setup_, plan_, state_, speed_); !s.ok()) {
        return AsInputError(s);
      }
      console_.Line(speed_.Describe());
    }
    const std::string curve = JoinPath(folder, "loss_curve.svg");
    if (absl::Status s = AtomicWriteFile(setup_.env, curve, LossCurveSvg(state_)); !s.ok()) {
      return AsInputError(s);
    }
    const bool full = setup_.job.mode() == proto::Mode::FULL;
    console_.Line(absl::StrCat(
        "done: ", JoinPath(folder, full ? "model.safetensors" : kAdapterModelFile),
        "; log: ", JoinPath(folder, "metrics.jsonl"), " and ", JoinPath(folder, "runs"),
        " (TensorBoard), ", curve, "; peak memory ", FormatBytes(PeakHostMemory())));
    return absl::OkStatus();
  }

  const Setup& setup_;
  const proto::Training& training_;
  Console& console_;
  const volatile std::sig_atomic_t& stop_;
  RecordOptions record_;
  Plan plan_;
  bool saves_beside_ = false;
  std::unique_ptr<Execution> execution_;
  std::optional<CheckpointWriter> writer_;
  std::optional<Integrity> integrity_;
  std::optional<RunLog> log_;
  Schedule schedule_;
  proto::RunState state_;
  double begin_seconds_ = 0;
  int64_t begin_step_ = 0;
  double tokens_per_second_ = 0, share_of_light_ = 0;  // of the last step
  TrainSpeed speed_;
};

}  // namespace

absl::Status Train(const Setup& setup, Console* console,
                   const volatile std::sig_atomic_t* stop_signal) {
  TrainingRun run(setup, console, stop_signal);
  const absl::Status status = run.Run();
  if (setup.ranks != nullptr) {
    // The others learn of it before this rank's end of the link closes, and that before the memory
    // goes that it may still be reading.
    if (!status.ok() && !absl::IsCancelled(status)) setup.ranks->control().Abort(status);
    setup.ranks->CloseComm();
  }
  return status;
}

}  // namespace qlora::engine
