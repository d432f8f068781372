// The micro-batches of several courses as one: their rows one behind the other, so that they share
// every product with the frozen base.

#ifndef QLORA_ENGINE_DATA_JOIN_BATCHES_H_
#define QLORA_ENGINE_DATA_JOIN_BATCHES_H_

#include <vector>

#include "absl/types/span.h"
#include "engine/data/batcher.h"
#include "engine/step/step_inputs.h"

namespace qlora::engine {

struct JoinedBatch {
  MicroBatch all;
  std::vector<BatchSegment> segments;  // one a course
  MicroBatchInputs inputs() const;
};

// One of each course; null: the course has no rows.
JoinedBatch JoinBatches(absl::Span<const MicroBatch* const> batches);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_JOIN_BATCHES_H_
