// trainer_state.json as Transformers' Trainer writes it: dashboards read its log_history.

#ifndef QLORA_ENGINE_REPORT_TRAINER_STATE_H_
#define QLORA_ENGINE_REPORT_TRAINER_STATE_H_

#include <cstdint>
#include <string>

#include "proto/run_state.pb.h"

namespace qlora::engine {

struct TrainerSettings {
  int64_t save_steps = 0, logging_steps = 0, eval_steps = 0, train_batch_size = 0, max_steps = 0;
  double num_train_epochs = 0;
};

std::string TrainerStateJson(const TrainerSettings& settings, const proto::RunState& state);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_TRAINER_STATE_H_
