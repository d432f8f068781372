// From samples to micro-batches: order, packing and layout are functions of (samples, seed, step)
// alone, so a resumed run needs nothing but its step, and the number of ranks changes nothing.

#ifndef QLORA_ENGINE_DATA_BATCHER_H_
#define QLORA_ENGINE_DATA_BATCHER_H_

#include <cstdint>
#include <vector>

#include "engine/data/dataset.h"
#include "engine/step/step_inputs.h"

namespace qlora::engine {

struct BatcherOptions {
  int64_t rows_per_micro_batch = 1;    // per_device_train_batch_size: samples, or packed rows
  int64_t micro_batches_per_step = 1;  // of the global batch
  int64_t max_length = 1024;           // tokens of a packed row
  bool packing = false;
  bool shuffle = true;
  uint64_t seed = 0;
};

// The contents of one micro-batch; owns what MicroBatchInputs borrows. Documents are separate
// sequences: positions restart and attention stays inside. Possibly empty (the last step of an
// epoch).
struct MicroBatch {
  std::vector<int32_t> ids, positions, rows, targets;
  std::vector<DocumentBounds> documents;
  std::vector<int64_t> samples;  // index of each document's sample in the data set
  MicroBatchInputs inputs() const { return {ids, positions, documents, rows, targets}; }
};

class Batcher {
 public:
  // `dataset` must outlive it and hold at least one sample.
  Batcher(const Dataset* dataset, const BatcherOptions& options);

  // `step` counts from 0; epoch e is steps e * StepsOf(1) to (e + 1) * StepsOf(1) - 1. Each epoch
  // has its own order.

  // What any micro-batch of any epoch may hold at most.
  BatchCapacity capacity() const;
  // Steps of `epochs` epochs, a fraction of a step counted as one. Every epoch has as many as the
  // others, and each sample once; its last step may hold less than the rest.
  int64_t StepsOf(double epochs) const;
  // Epoch (with fraction) that has passed when `step` steps are done.
  double EpochAt(int64_t step) const;

  // The micro-batches of a step, micro_batches_per_step of them. Not thread safe: keeps the epoch
  // last asked for.
  std::vector<MicroBatch> Step(int64_t step) const;
  static int64_t TrainedTokens(const std::vector<MicroBatch>& batch);

 private:
  using Rows = std::vector<std::vector<int64_t>>;  // samples of each row

  Rows RowsOf(int64_t epoch) const;

  const Dataset* dataset_;
  const BatcherOptions options_;
  int64_t rows_per_epoch_ = 0, steps_per_epoch_ = 0;
  mutable int64_t cached_epoch_ = -1;
  mutable Rows cached_rows_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_BATCHER_H_
