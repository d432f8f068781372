#include "engine/step/step.h"

#include <chrono>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/step/find_nonfinite.h"

namespace qlora::engine {
namespace {

std::set<int64_t> ActiveGroups(absl::Span<const CourseStep> courses) {
  std::set<int64_t> groups;
  for (const CourseStep& course : courses) {
    if (course.is_active) groups.insert(course.group);
  }
  return groups;
}

}  // namespace

TrainStep::TrainStep(Execution* execution, const StepOptions& options, Comm* comm)
    : execution_(*execution),
      pieces_(*execution->plan().run.train),
      storage_(execution->plan().run.storage),
      options_(options),
      comm_(comm) {
  if (execution->paged_states() == nullptr) return;
  std::vector<WindowRange> ranges;
  for (const UpdatePiece& update : pieces_.update) ranges.push_back(update.windows);
  pager_.emplace(execution->paged_states(), std::move(ranges));
}

absl::StatusOr<StepResult> TrainStep::Run(const CourseStep& course, Batches batches) {
  absl::StatusOr<std::vector<StepResult>> results =
      Run(absl::MakeConstSpan(&course, 1), [&](int64_t j, int64_t) { return batches(j); });
  if (!results.ok()) return results.status();
  return results->front();
}

absl::StatusOr<std::vector<StepResult>> TrainStep::Run(absl::Span<const CourseStep> courses,
                                                       GroupBatches batches) {
  const std::set<int64_t> groups = ActiveGroups(courses);
  for (int64_t j = 0; j < options_.micro_batches; ++j) {
    if (j == 0 || options_.tree_sum) {
      if (absl::Status s = execution_.Run(pieces_.begin_sum); !s.ok()) return s;
    }
    const bool is_last = j + 1 == options_.micro_batches;
    for (const int64_t group : groups) {
      if (absl::Status s = StageBatch(courses, FirstBatch() + j, group, batches); !s.ok()) return s;
      const bool ends_sums = is_last && group == *groups.rbegin();
      const auto at_move = [&](const Move& m) { return ends_sums ? AtMove(m) : absl::OkStatus(); };
      if (absl::Status s = execution_.Run(pieces_.micro_batch, at_move); !s.ok()) return s;
    }
    if (options_.tree_sum && !is_last) {
      if (absl::Status s = KeepSum(j); !s.ok()) return s;
    }
  }

  if (absl::Status s = AwaitRanks(); !s.ok()) return s;
  std::vector<UpdateInputs> scalars;
  for (const CourseStep& course : courses) {
    const double updates = double(course.updates + 1);
    scalars.push_back({.learning_rate = float(course.learning_rate),
                       .bias_correction1 = float(1.0 - std::pow(options_.beta1, updates)),
                       .bias_correction2 = float(1.0 - std::pow(options_.beta2, updates)),
                       .inverse_tokens = float(1.0 / double(course.trained_tokens))});
  }
  const std::vector<uint8_t> update = EncodeUpdate(scalars);
  if (absl::Status s =
          execution_.Stage(pieces_.update_inputs.scalars, update.data(), update.size());
      !s.ok()) {
    return s;
  }
  if (absl::Status s = GatherChunkSums(); !s.ok()) return s;
  if (absl::Status s = Update(courses); !s.ok()) return s;
  if (absl::Status s = GatherUpdated(); !s.ok()) return s;

  std::vector<StepResult> results(courses.size());
  for (size_t i = 0; i < courses.size(); ++i) {
    if (!courses[i].is_active) continue;
    absl::StatusOr<StepResult> result = ResultOf(int64_t(i), courses[i]);
    if (!result.ok()) return result.status();
    results[i] = *result;
  }
  return results;
}

absl::Status TrainStep::StageBatch(absl::Span<const CourseStep> courses, int64_t j, int64_t group,
                                   GroupBatches batches) {
  absl::StatusOr<MicroBatchInputs> batch = batches(j, group);
  if (!batch.ok()) return batch.status();
  std::vector<RandomCounter> counters;
  for (const CourseStep& course : courses) {
    counters.push_back(
        {.seed = course.seed, .step = int32_t(course.step), .micro_batch = int32_t(j)});
  }
  const std::vector<uint8_t> inputs = EncodeBatch(pieces_.inputs, *batch, counters);
  return execution_.Stage(pieces_.inputs.live_tokens, inputs.data(), inputs.size());
}

absl::StatusOr<std::string> TrainStep::FindNonFinite(absl::Span<const CourseStep> courses,
                                                     GroupBatches batches) {
  std::string first;
  for (int64_t j = FirstBatch(); j < FirstBatch() + options_.micro_batches; ++j) {
    for (const int64_t group : ActiveGroups(courses)) {
      if (absl::Status s = StageBatch(courses, j, group, batches); !s.ok()) return s;
      absl::StatusOr<std::string> found = engine::FindNonFinite(&execution_, pieces_);
      if (!found.ok()) return found.status();
      if (first.empty() && !found->empty()) first = absl::StrCat(*found, " in micro-batch ", j);
    }
  }
  return first;
}

absl::StatusOr<StepResult> TrainStep::ResultOf(int64_t course, const CourseStep& step) {
  const auto own = [&](const kernels::Tensor& outputs) {
    return kernels::SliceRows(outputs, course, 1);
  };
  const absl::StatusOr<double> loss = execution_.ReadScalar<double>(own(pieces_.loss.loss));
  if (!loss.ok()) return loss.status();
  const absl::StatusOr<float> norm = execution_.ReadScalar<float>(own(pieces_.gradient_norm));
  if (!norm.ok()) return norm.status();
  const absl::StatusOr<int32_t> skip = execution_.ReadScalar<int32_t>(own(pieces_.skip));
  if (!skip.ok()) return skip.status();
  return StepResult{.loss_sum = *loss,
                    .trained_tokens = step.trained_tokens,
                    .gradient_norm = *norm,
                    .skipped = *skip != 0};
}

absl::Status TrainStep::GatherChunkSums() {
  if (!is_shared_out()) return absl::OkStatus();
  if (absl::Status s = execution_.Run(pieces_.sum_chunks); !s.ok()) return s;
  return Gather(pieces_.chunk_sums, ChunkSumShares(storage_));
}

absl::Status TrainStep::GatherUpdated() {
  if (!is_shared_out()) return absl::OkStatus();
  const kernels::Tensor trained = storage_.trained();
  Shares bytes = storage_.state_shares;
  for (int64_t& begin : bytes) begin *= kernels::SizeOf(trained.dtype);
  return Gather(trained, bytes);
}

absl::Status TrainStep::Gather(kernels::Tensor view, const Shares& bytes) {
  uint8_t* const all = static_cast<uint8_t*>(execution_.Bind(view).data);
  if (absl::Status s = comm_->StartAllGather(all + bytes[comm_->rank()], all, bytes); !s.ok()) {
    return s;
  }
  return AwaitRanks();
}

absl::Status TrainStep::AtMove(const Move& move) {
  return move.kind == Move::Kind::kLend ? pager_->Grow(move.window) : SumPart(move.window);
}

// The last micro-batch takes what is left of the tree, lowest level first, so that its buffer ends
// with the whole sum: of the part that its backward has just finished, then over ranks.
absl::Status TrainStep::SumPart(int64_t part) {
  const int64_t last = options_.micro_batches - 1;
  for (int64_t level = 0; options_.tree_sum && (last >> level) != 0; ++level) {
    if (((last >> level) & 1) == 0) continue;
    if (absl::Status s = execution_.Run(pieces_.take[level][part]); !s.ok()) return s;
  }
  return comm_ == nullptr ? absl::OkStatus() : SumOverRanks(part);
}

absl::Status TrainStep::SumOverRanks(int64_t part) {
  const GradientPart& range = pieces_.gradient_parts[part];
  const kernels::Tensor sum = execution_.Bind(PartOf(storage_.gradient, range));
  void* const arriving = execution_.Bind(pieces_.gradients_arriving).data;
  const absl::Status started = is_shared_out()
                                   ? comm_->StartSumShares(sum.dtype, sum.data, arriving,
                                                           SharesIn(range, storage_.state_shares))
                                   : comm_->StartSum(sum.dtype, sum.data, arriving, sum.Count());
  if (!started.ok() || part + 1 < int64_t(pieces_.gradient_parts.size())) return started;
  const kernels::Tensor loss = execution_.Bind(pieces_.loss.loss);
  return comm_->StartSum(loss.dtype, loss.data, execution_.Bind(pieces_.losses_arriving).data,
                         loss.Count());
}

absl::Status TrainStep::AwaitRanks() {
  if (comm_ == nullptr) return absl::OkStatus();
  // While the device still computes, exchange costs no time.
  if (absl::Status s = execution_.device().Synchronize(); !s.ok()) return s;
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = comm_->Finish();
  waited_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

absl::Status TrainStep::Update(absl::Span<const CourseStep> courses) {
  for (size_t i = 0; i < courses.size(); ++i) {
    if (!courses[i].is_active) continue;
    if (absl::Status s = execution_.Run(pieces_.finish[i]); !s.ok()) return s;
  }
  const auto update = [&](int64_t range) {
    const UpdatePiece& piece = pieces_.update[range];
    const int64_t course = storage_.windows[piece.windows.first].course;
    return courses[course].is_active ? execution_.Run(piece.piece) : absl::OkStatus();
  };
  if (pager_) return pager_->Sweep(update);
  for (int64_t range = 0; range < int64_t(pieces_.update.size()); ++range) {
    if (absl::Status s = update(range); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// The tree as a binary counter: after micro-batch j, level i holds a finished sum of 2^i
// micro-batches for every set bit i of j + 1.
absl::Status TrainStep::KeepSum(int64_t j) {
  int64_t level = 0;
  for (; (j >> level) & 1; ++level) {
    for (const int64_t take : pieces_.take[level]) {
      if (absl::Status s = execution_.Run(take); !s.ok()) return s;
    }
  }
  return execution_.Run(pieces_.keep[level]);
}

}  // namespace qlora::engine
