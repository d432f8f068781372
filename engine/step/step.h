// One training step: micro-batches forward and backward, their gradients summed, one update of each
// course that takes part.
//
// Of a global batch of N·n micro-batches, rank r of N runs n, from r·n on. With tree sums each rank
// makes one subtree, and the sum over ranks the tree above them, so that for powers of two the
// gradients do not tell how many ranks there were. The sum over ranks of a part of the gradient
// begins as soon as the last micro-batch's backward has finished that part, beside the rest of it.
//
// Where states are shared out (shard_states) each rank takes the sum of its share of the gradients
// only, updates the parameters in it, and the updated ones are gathered.

#ifndef QLORA_ENGINE_STEP_STEP_H_
#define QLORA_ENGINE_STEP_STEP_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/comm/comm.h"
#include "engine/optim/state_pager.h"
#include "engine/step/execution.h"
#include "engine/step/step_inputs.h"

namespace qlora::engine {

struct StepOptions {
  int64_t micro_batches = 1;  // of the global batch, that this rank runs
  bool tree_sum = true;       // a balanced tree over micro-batches, or one after another
  double beta1 = 0.9, beta2 = 0.999;
};

// What a course brings to a step.
struct CourseStep {
  bool is_active = true;  // false: it has no rows and is not updated
  // Rows of a group's courses go through the model beside each other, groups one after the other.
  int64_t group = 0;
  uint64_t seed = 0;
  int64_t step = 0;     // counts from 0 and feeds the random counter
  int64_t updates = 0;  // made before: skipped steps make none
  double learning_rate = 0;
  int64_t trained_tokens = 0;  // of the whole global batch
};

struct StepResult {
  double loss_sum = 0;  // Σ −log p over the batch's trained tokens
  int64_t trained_tokens = 0;
  float gradient_norm = 0;  // of the mean gradient, before clipping
  bool skipped = false;     // gradients or loss were not finite: nothing was updated
};

class TrainStep {
 public:
  // Both must outlive it. `comm`: null where this is the only rank.
  TrainStep(Execution* execution, const StepOptions& options, Comm* comm = nullptr);

  // Gives micro-batch j of the global batch. The spans live until the next call.
  using Batches = absl::FunctionRef<absl::StatusOr<MicroBatchInputs>(int64_t j)>;
  // Of it the rows of a group's courses.
  using GroupBatches =
      absl::FunctionRef<absl::StatusOr<MicroBatchInputs>(int64_t j, int64_t group)>;

  // One of each course of the run, at least one of them active, and a result for each.
  absl::StatusOr<std::vector<StepResult>> Run(absl::Span<const CourseStep> courses,
                                              GroupBatches batches);
  // Of a run with one course.
  absl::StatusOr<StepResult> Run(const CourseStep& course, Batches batches);

  // Behind a step that was skipped, with what it was given: the first value of this rank's
  // micro-batches that is not finite (engine/step/find_nonfinite.h), "" where they all are by
  // themselves. All ranks call it.
  absl::StatusOr<std::string> FindNonFinite(absl::Span<const CourseStep> courses,
                                            GroupBatches batches);

  // Bytes of paged optimizer states that were moved to the device and back since the start.
  int64_t paged_in() const { return pager_ ? pager_->bytes_in() : 0; }
  int64_t paged_out() const { return pager_ ? pager_->bytes_out() : 0; }
  // Seconds since the start in which the device had nothing to do but wait for other ranks.
  double waited_seconds() const { return waited_seconds_; }

 private:
  // Puts a group's rows of micro-batch `j` of the global batch where the pieces read them.
  absl::Status StageBatch(absl::Span<const CourseStep> courses, int64_t j, int64_t group,
                          GroupBatches batches);
  // Of the first of this rank's micro-batches.
  int64_t FirstBatch() const {
    return comm_ == nullptr ? 0 : comm_->rank() * options_.micro_batches;
  }
  absl::Status KeepSum(int64_t j);
  absl::Status AtMove(const Move& move);
  absl::Status SumPart(int64_t part);
  absl::Status SumOverRanks(int64_t part);
  absl::Status AwaitRanks();
  absl::Status GatherChunkSums();
  absl::Status Update(absl::Span<const CourseStep> courses);
  absl::Status GatherUpdated();
  // Every rank's share of a view, whole on all of them.
  absl::Status Gather(kernels::Tensor view, const Shares& bytes);
  bool is_shared_out() const { return storage_.options.shard_states; }
  absl::StatusOr<StepResult> ResultOf(int64_t course, const CourseStep& step);

  Execution& execution_;
  const TrainPieces& pieces_;
  const Storage& storage_;
  const StepOptions options_;
  Comm* const comm_;
  std::optional<StatePager> pager_;  // none where the states are not paged
  double waited_seconds_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_STEP_H_
