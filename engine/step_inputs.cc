#include "engine/step_inputs.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/ops/adamw.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

// Scalars stand in the first 64 bytes, then the arrays, each at a multiple of 64.
constexpr int64_t kScalarBytes = kernels::kBufferAlignment;
enum ScalarSlot : int64_t { kLiveTokens, kDocumentCount, kTrainedCount, kRandomCounter };

Tensor At(const Tensor& buffer, int64_t offset, DType dtype, int64_t rows, int64_t cols) {
  return {static_cast<uint8_t*>(buffer.data) + offset, dtype, rows, cols, cols};
}

void Put(std::vector<uint8_t>* bytes, const BatchViews& views, const Tensor& view, const void* from,
         int64_t size) {
  const int64_t offset = Program::OffsetOf(view.data) - Program::OffsetOf(views.live_tokens.data);
  if (size > 0) std::memcpy(bytes->data() + offset, from, size);
}

}  // namespace

BatchViews AddBatchInputs(Program* program, const BatchCapacity& capacity, const char* name) {
  const int64_t token_bytes = kernels::BufferBytes(capacity.tokens * 4);
  const int64_t document_bytes = kernels::BufferBytes(capacity.documents * 16);
  const int64_t row_bytes = kernels::BufferBytes(capacity.trained_rows * 4);
  const int64_t bytes = kScalarBytes + 2 * token_bytes + document_bytes + 2 * row_bytes;
  const Tensor buffer = program->AddBuffer(absl::StrCat(name, " inputs"), BufferClass::kStepInputs,
                                           DType::kU8, 1, bytes);
  BatchViews views{.capacity = capacity};
  views.live_tokens = At(buffer, kLiveTokens * 4, DType::kI32, 1, 1);
  views.document_count = At(buffer, kDocumentCount * 4, DType::kI32, 1, 1);
  views.trained_count = At(buffer, kTrainedCount * 4, DType::kI32, 1, 1);
  views.random_counter = At(buffer, kRandomCounter * 4, DType::kI32, 1, 4);
  int64_t offset = kScalarBytes;
  views.ids = At(buffer, offset, DType::kI32, capacity.tokens, 1);
  offset += token_bytes;
  views.positions = At(buffer, offset, DType::kI32, capacity.tokens, 1);
  offset += token_bytes;
  views.documents = At(buffer, offset, DType::kI32, capacity.documents, 4);
  offset += document_bytes;
  views.rows = At(buffer, offset, DType::kI32, capacity.trained_rows, 1);
  offset += row_bytes;
  views.targets = At(buffer, offset, DType::kI32, capacity.trained_rows, 1);
  return views;
}

std::vector<uint8_t> EncodeBatch(const BatchViews& views, const MicroBatchInputs& batch,
                                 const RandomCounter& counter) {
  const int64_t end =
      Program::OffsetOf(views.targets.data) + kernels::BufferBytes(views.capacity.trained_rows * 4);
  std::vector<uint8_t> bytes(end - Program::OffsetOf(views.live_tokens.data));
  const int32_t scalars[7] = {int32_t(batch.ids.size()),
                              int32_t(batch.documents.size()),
                              int32_t(batch.rows.size()),
                              int32_t(uint32_t(counter.seed)),
                              int32_t(uint32_t(counter.seed >> 32)),
                              counter.step,
                              counter.micro_batch};
  std::memcpy(bytes.data(), scalars, sizeof(scalars));
  Put(&bytes, views, views.ids, batch.ids.data(), batch.ids.size() * 4);
  Put(&bytes, views, views.positions, batch.positions.data(), batch.positions.size() * 4);
  Put(&bytes, views, views.documents, batch.documents.data(), batch.documents.size() * 16);
  Put(&bytes, views, views.rows, batch.rows.data(), batch.rows.size() * 4);
  Put(&bytes, views, views.targets, batch.targets.data(), batch.targets.size() * 4);
  return bytes;
}

UpdateViews AddUpdateInputs(Program* program) {
  const Tensor buffer = program->AddBuffer("update inputs", BufferClass::kStepInputs, DType::kF32,
                                           1, kernels::UpdateScalars::kCount + 1);
  return {.scalars = At(buffer, 0, DType::kF32, 1, kernels::UpdateScalars::kCount),
          .inverse_tokens = At(buffer, kernels::UpdateScalars::kCount * 4, DType::kF32, 1, 1)};
}

std::vector<uint8_t> EncodeUpdate(const UpdateInputs& inputs) {
  const float values[kernels::UpdateScalars::kCount + 1] = {
      inputs.learning_rate, inputs.bias_correction1, inputs.bias_correction2,
      inputs.inverse_tokens};
  const uint8_t* begin = reinterpret_cast<const uint8_t*>(values);
  return {begin, begin + sizeof(values)};
}

}  // namespace qlora::engine
