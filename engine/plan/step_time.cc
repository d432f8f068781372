#include "engine/plan/step_time.h"

namespace qlora::engine {
namespace {

// Gradients summed over ranks, and whatever else the update exchanges.
Traffic UpdateTraffic(const Plan& plan) {
  const Storage& storage = plan.run.storage;
  const TrainPieces& train = *plan.run.train;
  const double gradient = double(storage.gradient.Extent());
  const double loss = double(train.loss.loss.Extent());
  if (!storage.options.shard_states) return {.bytes = 2 * (gradient + loss), .operations = 2};
  return {.bytes = gradient + 2 * loss + double(train.chunk_sums.Extent()) +
                   double(storage.trained().Extent()),
          .operations = 3};
}

// What a micro-batch exchanges: weights that ranks share out.
Traffic MicroBatchTraffic(const Plan& plan) {
  const Program& program = plan.run.program;
  Traffic traffic;
  for (const Move& move : program.pieces()[plan.run.train->micro_batch].moves) {
    if (move.kind != Move::Kind::kGather) continue;
    const BufferId window = plan.run.storage.gathered[move.window].window;
    traffic = traffic + Traffic{double(program.buffers()[window].bytes), 1};
  }
  return traffic;
}

}  // namespace

StepTime TimeOfStep(const Plan& plan, const MachineRates& rates, int64_t micro_batches,
                    double full) {
  const TrainPieces& train = *plan.run.train;
  const auto seconds_of = [&](int64_t piece) {
    return BoundSeconds(plan.run.program.pieces()[piece].ops, rates);
  };
  // One sum of gradients or, in a tree, one for each micro-batch: kept for its pair, then taken.
  double sums = seconds_of(train.begin_sum);
  if (!train.keep.empty()) {
    double pair = seconds_of(train.keep.front());
    for (const int64_t piece : train.take.front()) pair += seconds_of(piece);
    sums = double(micro_batches) * sums + double(micro_batches - 1) * pair;
  }
  StepTime time;
  const int64_t passes = micro_batches * train.passes;
  const double lacking = double(passes) - full;
  time.seconds = StepSeconds(plan, passes) - lacking * plan.micro_batch_seconds + sums;
  time.link_seconds = full * plan.micro_batch_link_seconds + plan.update_link_seconds;
  time.memory_seconds = full * plan.micro_batch_memory_seconds + sums + plan.update_seconds -
                        plan.update_link_seconds;
  time.traffic = double(passes) * MicroBatchTraffic(plan) + UpdateTraffic(plan);
  return time;
}

StepTime TimeOfStep(const Plan& plan, const MachineRates& rates, int64_t micro_batches) {
  return TimeOfStep(plan, rates, micro_batches, double(micro_batches * plan.run.train->passes));
}

Network NetworkOf(const proto::Plan& plan) {
  return {plan.network_bytes_per_second(), plan.network_latency_seconds()};
}

}  // namespace qlora::engine
