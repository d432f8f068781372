#include "engine/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qlora::engine {

Schedule ScheduleOf(const proto::Training& training, int64_t total_steps) {
  Schedule schedule{.type = training.lr_scheduler_type(),
                    .learning_rate = training.learning_rate(),
                    .total_steps = total_steps};
  if (schedule.type == proto::Scheduler::CONSTANT) return schedule;
  schedule.warmup_steps = training.has_warmup_steps()
                              ? training.warmup_steps()
                              : int64_t(std::ceil(training.warmup_ratio() * double(total_steps)));
  return schedule;
}

double LearningRate(const Schedule& schedule, int64_t step) {
  const double warmup = double(schedule.warmup_steps);
  if (step < schedule.warmup_steps) return schedule.learning_rate * double(step) / warmup;
  const double rest = std::max(1.0, double(schedule.total_steps) - warmup);
  switch (schedule.type) {
    case proto::Scheduler::LINEAR:
      return schedule.learning_rate *
             std::max(0.0, (double(schedule.total_steps) - double(step)) / rest);
    case proto::Scheduler::COSINE: {
      const double progress = (double(step) - warmup) / rest;
      return schedule.learning_rate *
             std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
    }
    default:
      return schedule.learning_rate;
  }
}

}  // namespace qlora::engine
