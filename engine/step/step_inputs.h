// What changes from step to step, in one device buffer: everything else in a program stays as it
// was recorded.

#ifndef QLORA_ENGINE_STEP_STEP_INPUTS_H_
#define QLORA_ENGINE_STEP_STEP_INPUTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/record/program.h"
#include "kernels/tensor.h"

namespace qlora::engine {

// How much one micro-batch may hold.
struct BatchCapacity {
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t trained_rows = 0;
};

// One document of a micro-batch as attention sees it.
struct DocumentBounds {
  int32_t query_begin, query_rows, key_begin, key_rows;
};

// What one adapter has of a micro-batch: tokens [first_token, end_token) and, of those trained on,
// rows [first_row, end_row). Several stand one behind the other, in the order of the run's courses.
struct BatchSegment {
  int32_t first_token = 0, end_token = 0, first_row = 0, end_row = 0;
};

// The contents of a micro-batch. `rows` are the token positions whose next token is trained on,
// ascending; `targets` those next tokens.
struct MicroBatchInputs {
  absl::Span<const int32_t> ids;
  absl::Span<const int32_t> positions;
  absl::Span<const DocumentBounds> documents;
  absl::Span<const int32_t> rows;
  absl::Span<const int32_t> targets;
  // One a course; none: all of it is course `only`'s.
  absl::Span<const BatchSegment> segments;
  int64_t only = 0;
};

// Views of the parts of one micro-batch's inputs, virtual or bound.
struct BatchViews {
  BatchCapacity capacity;
  int64_t courses = 1;              // S
  kernels::Tensor live_tokens;      // i32 scalar
  kernels::Tensor document_count;   // i32 scalar
  kernels::Tensor trained_count;    // i32 scalar
  kernels::Tensor random_counters;  // i32 [S, 4]: seed low, seed high, step, micro-batch
  kernels::Tensor token_segments;   // i32 [S, 2]: first and end of each course's tokens
  kernels::Tensor row_segments;     // i32 [S, 2]: likewise of its trained rows
  kernels::Tensor ids;              // i32 [tokens, 1]
  kernels::Tensor positions;        // i32 [tokens, 1]
  kernels::Tensor documents;        // i32 [documents, 4]
  kernels::Tensor rows;             // i32 [trained rows, 1]
  kernels::Tensor targets;          // i32 [trained rows, 1]
};

BatchViews AddBatchInputs(Program* program, const BatchCapacity& capacity, int64_t courses,
                          const char* name);

struct RandomCounter {
  uint64_t seed = 0;
  int32_t step = 0;
  int32_t micro_batch = 0;  // within the global batch
};

// The bytes of `views`' whole buffer for this micro-batch, laid out as the views are. The contents
// must fit. `counters`: one a course, or none where nothing is random.
std::vector<uint8_t> EncodeBatch(const BatchViews& views, const MicroBatchInputs& batch,
                                 absl::Span<const RandomCounter> counters);

// Per-step scalars of the update.
struct UpdateViews {
  kernels::Tensor scalars;         // f32 [S, UpdateScalars::kCount]
  kernels::Tensor inverse_tokens;  // f32 [S, 1]
};
UpdateViews AddUpdateInputs(Program* program, int64_t courses);

struct UpdateInputs {
  float learning_rate = 0;
  float bias_correction1 = 1, bias_correction2 = 1;  // 1 − β^t
  float inverse_tokens = 0;                          // 1 / trained tokens of the global batch
};
// One a course.
std::vector<uint8_t> EncodeUpdate(absl::Span<const UpdateInputs> inputs);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_STEP_INPUTS_H_
