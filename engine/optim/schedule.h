// Learning-rate schedules, as Transformers defines them.

#ifndef QLORA_ENGINE_OPTIM_SCHEDULE_H_
#define QLORA_ENGINE_OPTIM_SCHEDULE_H_

#include <cstdint>

#include "proto/job.pb.h"

namespace qlora::engine {

struct Schedule {
  proto::Scheduler::Value type = proto::Scheduler::CONSTANT_WITH_WARMUP;
  double learning_rate = 0;  // the peak
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;
};

// warmup_steps where given, else ceil(warmup_ratio · total_steps); none with CONSTANT.
Schedule ScheduleOf(const proto::Training& training, int64_t total_steps);

// The rate of update `step`, counted from 0: with warmup the first update has rate 0, as in
// Transformers.
double LearningRate(const Schedule& schedule, int64_t step);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_OPTIM_SCHEDULE_H_
