// What changes from step to step, in one device buffer: everything else in a program stays as it
// was recorded.

#ifndef QLORA_ENGINE_STEP_INPUTS_H_
#define QLORA_ENGINE_STEP_INPUTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/program.h"
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

// The contents of a micro-batch. `rows` are the token positions whose next token is trained on,
// ascending; `targets` those next tokens.
struct MicroBatchInputs {
  absl::Span<const int32_t> ids;
  absl::Span<const int32_t> positions;
  absl::Span<const DocumentBounds> documents;
  absl::Span<const int32_t> rows;
  absl::Span<const int32_t> targets;
};

// Views of the parts of one micro-batch's inputs, virtual or bound.
struct BatchViews {
  BatchCapacity capacity;
  kernels::Tensor live_tokens;     // i32 scalar
  kernels::Tensor document_count;  // i32 scalar
  kernels::Tensor trained_count;   // i32 scalar
  kernels::Tensor random_counter;  // i32 [1, 4]: seed low, seed high, step, micro-batch
  kernels::Tensor ids;             // i32 [tokens, 1]
  kernels::Tensor positions;       // i32 [tokens, 1]
  kernels::Tensor documents;       // i32 [documents, 4]
  kernels::Tensor rows;            // i32 [trained rows, 1]
  kernels::Tensor targets;         // i32 [trained rows, 1]
};

BatchViews AddBatchInputs(Program* program, const BatchCapacity& capacity, const char* name);

struct RandomCounter {
  uint64_t seed = 0;
  int32_t step = 0;
  int32_t micro_batch = 0;  // within the global batch
};

// The bytes of `views`' whole buffer for this micro-batch, laid out as the views are. The contents
// must fit.
std::vector<uint8_t> EncodeBatch(const BatchViews& views, const MicroBatchInputs& batch,
                                 const RandomCounter& counter);

// Per-step scalars of the update.
struct UpdateViews {
  kernels::Tensor scalars;         // f32 [1, UpdateScalars::kCount]
  kernels::Tensor inverse_tokens;  // f32 scalar
};
UpdateViews AddUpdateInputs(Program* program);

struct UpdateInputs {
  float learning_rate = 0;
  float bias_correction1 = 1, bias_correction2 = 1;  // 1 − β^t
  float inverse_tokens = 0;                          // 1 / trained tokens of the global batch
};
std::vector<uint8_t> EncodeUpdate(const UpdateInputs& inputs);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_INPUTS_H_
