// The records of a run: metrics.jsonl, TensorBoard events and the history in trainer_state.json say
// the same.

#ifndef QLORA_ENGINE_REPORT_RUN_LOG_H_
#define QLORA_ENGINE_REPORT_RUN_LOG_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/commands/evaluate.h"
#include "engine/io/event_file.h"
#include "engine/io/metrics_log.h"
#include "proto/run_state.pb.h"

namespace qlora::engine {

struct TrainRecord {
  int64_t step = 0;
  double epoch = 0;
  std::optional<double> loss;  // mean since the last record; none where all steps were skipped
  double learning_rate = 0, grad_norm = 0;
  // Of this machine and moment: in the events only, so that the log of a resumed run equals an
  // undisturbed one's.
  double tokens_per_second = 0, share_of_light = 0;
  // Where the rest went, as shares of the step: values computed again and weights written out in 16
  // bits, both as the plan weighs them against a micro-batch's other ops; time in which the device
  // only waited for other ranks, and in which it had nothing to do, both measured.
  double recompute_share = 0, dequantize_share = 0, communication_share = 0, host_gap_share = 0;
  // Paged optimizer states moved to the device and back by this step.
  int64_t paged_in_bytes = 0, paged_out_bytes = 0;
};

class RunLog {
 public:
  // metrics.jsonl in `output_dir`, events below runs/; cut back to what `resumed` knows of.
  static absl::StatusOr<RunLog> Open(Env* env, const std::string& output_dir,
                                     const proto::RunState& resumed);

  absl::Status Train(const TrainRecord& record, proto::RunState* state);
  absl::Status Eval(int64_t step, double epoch, const EvalResult& result, proto::RunState* state);
  absl::Status Sync();

 private:
  RunLog(MetricsLog metrics, EventFile events)
      : metrics_(std::move(metrics)), events_(std::move(events)) {}

  MetricsLog metrics_;
  EventFile events_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_RUN_LOG_H_
