// The frozen weights that an adapter is folded into, read in rows: those of the checkpoint, or
// those that a 4-bit run computes with.

#ifndef QLORA_ENGINE_MERGE_BASE_WEIGHTS_H_
#define QLORA_ENGINE_MERGE_BASE_WEIGHTS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io/checkpoint_files.h"
#include "engine/model/model_spec.h"

namespace qlora::engine {

class BaseWeights {
 public:
  virtual ~BaseWeights() = default;
  // The type that the merged weight is stored in: BF16, F16 or F32.
  virtual absl::StatusOr<Dtype> TypeOf(const WeightRow& row) const = 0;
  // Whether the values differ from what the checkpoint stores: if not, and without an adapter, the
  // stored bytes are the result.
  virtual bool Replaces(const WeightRow& row) const = 0;
  // Rows [first, first + values.size() / row.cols) as fp32. Rows of one weight are asked for in
  // order, one weight after another. A value that is not finite is DataLoss naming tensor and
  // element.
  virtual absl::Status Read(const WeightRow& row, int64_t first, absl::Span<float> values) = 0;
};

// The checkpoint's own 16- or 32-bit weights. `model` must outlive it.
class StoredWeights : public BaseWeights {
 public:
  explicit StoredWeights(const ShardedModel& model) : model_(model) {}
  absl::StatusOr<Dtype> TypeOf(const WeightRow& row) const override;
  bool Replaces(const WeightRow&) const override { return false; }
  absl::Status Read(const WeightRow& row, int64_t first, absl::Span<float> values) override;

 private:
  const ShardedModel& model_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_BASE_WEIGHTS_H_
