#include "engine/report/run_log.h"

#include <utility>

namespace qlora::engine {

absl::StatusOr<RunLog> RunLog::Open(Env* env, const std::string& output_dir,
                                    const proto::RunState& resumed) {
  absl::StatusOr<MetricsLog> metrics = MetricsLog::Open(env, JoinPath(output_dir, "metrics.jsonl"),
                                                        resumed.step(), resumed.log_history_size());
  if (!metrics.ok()) return metrics.status();
  const std::string runs = JoinPath(output_dir, "runs");
  if (absl::Status s = env->CreateFolders(runs); !s.ok()) return s;
  absl::StatusOr<EventFile> events = EventFile::Create(env, runs, resumed.step());
  if (!events.ok()) return events.status();
  return RunLog(*std::move(metrics), *std::move(events));
}

absl::Status RunLog::Train(const TrainRecord& record, proto::RunState* state) {
  proto::LogRecord& entry = *state->add_log_history();
  entry.set_step(record.step);
  entry.set_epoch(record.epoch);
  entry.set_grad_norm(record.grad_norm);
  entry.set_learning_rate(record.learning_rate);
  MetricFields fields = {{"epoch", record.epoch}};
  std::vector<std::pair<std::string, float>> scalars;
  if (record.loss) {
    entry.set_loss(*record.loss);
    fields.emplace_back("loss", *record.loss);
    scalars.emplace_back("train/loss", float(*record.loss));
  }
  fields.emplace_back("learning_rate", record.learning_rate);
  fields.emplace_back("grad_norm", record.grad_norm);
  if (absl::Status s = metrics_.Write(record.step, fields); !s.ok()) return s;
  scalars.insert(scalars.end(), {{"train/learning_rate", float(record.learning_rate)},
                                 {"train/grad_norm", float(record.grad_norm)},
                                 {"train/epoch", float(record.epoch)},
                                 {"speed/tokens_per_second", float(record.tokens_per_second)},
                                 {"speed/share_of_light", float(record.share_of_light)},
                                 {"speed/recompute_share", float(record.recompute_share)},
                                 {"speed/dequantize_share", float(record.dequantize_share)},
                                 {"speed/communication_share", float(record.communication_share)},
                                 {"speed/host_gap_share", float(record.host_gap_share)},
                                 {"memory/paged_in_bytes", float(record.paged_in_bytes)},
                                 {"memory/paged_out_bytes", float(record.paged_out_bytes)}});
  return events_.WriteScalars(record.step, scalars);
}

absl::Status RunLog::Eval(int64_t step, double epoch, const EvalResult& result,
                          proto::RunState* state) {
  proto::LogRecord& entry = *state->add_log_history();
  entry.set_step(step);
  entry.set_epoch(epoch);
  entry.set_eval_loss(result.Loss());
  entry.set_eval_accuracy(result.Accuracy());
  MetricFields fields = {{"epoch", epoch},
                         {"eval_loss", result.Loss()},
                         {"eval_perplexity", result.Perplexity()},
                         {"eval_mean_token_accuracy", result.Accuracy()}};
  std::vector<std::pair<std::string, float>> scalars = {
      {"eval/loss", float(result.Loss())},
      {"eval/perplexity", float(result.Perplexity())},
      {"eval/mean_token_accuracy", float(result.Accuracy())}};
  if (result.exact_matches) {
    entry.set_eval_exact_match(result.ExactMatch());
    fields.emplace_back("eval_exact_match", result.ExactMatch());
    scalars.emplace_back("eval/exact_match", float(result.ExactMatch()));
  }
  if (absl::Status s = metrics_.Write(step, fields); !s.ok()) return s;
  return events_.WriteScalars(step, scalars);
}

absl::Status RunLog::Sync() {
  if (absl::Status s = metrics_.Sync(); !s.ok()) return s;
  return events_.Sync();
}

}  // namespace qlora::engine
