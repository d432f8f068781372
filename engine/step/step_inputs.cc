#include "engine/step/step_inputs.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/ops/adamw.h"

namespace qlora::engine {
namespace {

using kernels::DType;
using kernels::Tensor;

// First three scalars and what each course has of its own, then the arrays, each at a multiple of
// 64 bytes.
enum ScalarSlot : int64_t { kLiveTokens, kDocumentCount, kTrainedCount, kUnused, kPerCourse };
constexpr int64_t kCourseSlots = 4 + 2 + 2;  // counter, tokens, rows

int64_t HeaderBytes(int64_t courses) {
  return kernels::BufferBytes((kPerCourse + courses * kCourseSlots) * 4);
}

Tensor At(const Tensor& buffer, int64_t offset, DType dtype, int64_t rows, int64_t cols) {
  return {static_cast<uint8_t*>(buffer.data) + offset, dtype, rows, cols, cols};
}

void Put(std::vector<uint8_t>* bytes, const BatchViews& views, const Tensor& view, const void* from,
         int64_t size) {
  const int64_t offset = Program::OffsetOf(view.data) - Program::OffsetOf(views.live_tokens.data);
  if (size > 0) std::memcpy(bytes->data() + offset, from, size);
}

}  // namespace

BatchViews AddBatchInputs(Program* program, const BatchCapacity& capacity, int64_t courses,
                          const char* name) {
  const int64_t token_bytes = kernels::BufferBytes(capacity.tokens * 4);
  const int64_t document_bytes = kernels::BufferBytes(capacity.documents * 16);
  const int64_t row_bytes = kernels::BufferBytes(capacity.trained_rows * 4);
  const int64_t bytes = HeaderBytes(courses) + 2 * token_bytes + document_bytes + 2 * row_bytes;
  const Tensor buffer = program->AddBuffer(absl::StrCat(name, " inputs"), BufferClass::kStepInputs,
                                           DType::kU8, 1, bytes);
  BatchViews views{.capacity = capacity, .courses = courses};
  views.live_tokens = At(buffer, kLiveTokens * 4, DType::kI32, 1, 1);
  views.document_count = At(buffer, kDocumentCount * 4, DType::kI32, 1, 1);
  views.trained_count = At(buffer, kTrainedCount * 4, DType::kI32, 1, 1);
  int64_t offset = kPerCourse * 4;
  views.random_counters = At(buffer, offset, DType::kI32, courses, 4);
  offset += courses * 4 * 4;
  views.token_segments = At(buffer, offset, DType::kI32, courses, 2);
  offset += courses * 2 * 4;
  views.row_segments = At(buffer, offset, DType::kI32, courses, 2);
  offset = HeaderBytes(courses);
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
                                 absl::Span<const RandomCounter> counters) {
  const int64_t end =
      Program::OffsetOf(views.targets.data) + kernels::BufferBytes(views.capacity.trained_rows * 4);
  std::vector<uint8_t> bytes(end - Program::OffsetOf(views.live_tokens.data));
  const int32_t scalars[3] = {int32_t(batch.ids.size()), int32_t(batch.documents.size()),
                              int32_t(batch.rows.size())};
  std::memcpy(bytes.data(), scalars, sizeof(scalars));
  std::vector<int32_t> numbers, tokens, rows;
  for (const RandomCounter& c : counters) {
    numbers.insert(numbers.end(), {int32_t(uint32_t(c.seed)), int32_t(uint32_t(c.seed >> 32)),
                                   c.step, c.micro_batch});
  }
  for (int64_t course = 0; course < views.courses; ++course) {
    BatchSegment segment;
    if (!batch.segments.empty()) {
      segment = batch.segments[course];
    } else if (course == batch.only) {
      segment = {0, scalars[0], 0, scalars[2]};
    }
    tokens.insert(tokens.end(), {segment.first_token, segment.end_token});
    rows.insert(rows.end(), {segment.first_row, segment.end_row});
  }
  Put(&bytes, views, views.random_counters, numbers.data(), int64_t(numbers.size()) * 4);
  Put(&bytes, views, views.token_segments, tokens.data(), int64_t(tokens.size()) * 4);
  Put(&bytes, views, views.row_segments, rows.data(), int64_t(rows.size()) * 4);
  Put(&bytes, views, views.ids, batch.ids.data(), batch.ids.size() * 4);
  Put(&bytes, views, views.positions, batch.positions.data(), batch.positions.size() * 4);
  Put(&bytes, views, views.documents, batch.documents.data(), batch.documents.size() * 16);
  Put(&bytes, views, views.rows, batch.rows.data(), batch.rows.size() * 4);
  Put(&bytes, views, views.targets, batch.targets.data(), batch.targets.size() * 4);
  return bytes;
}

UpdateViews AddUpdateInputs(Program* program, int64_t courses) {
  constexpr int64_t kCount = kernels::UpdateScalars::kCount;
  const Tensor buffer = program->AddBuffer("update inputs", BufferClass::kStepInputs, DType::kF32,
                                           courses, kCount + 1);
  return {.scalars = At(buffer, 0, DType::kF32, courses, kCount),
          .inverse_tokens = At(buffer, courses * kCount * 4, DType::kF32, courses, 1)};
}

std::vector<uint8_t> EncodeUpdate(absl::Span<const UpdateInputs> inputs) {
  std::vector<float> values;
  for (const UpdateInputs& i : inputs) {
    values.insert(values.end(), {i.learning_rate, i.bias_correction1, i.bias_correction2});
  }
  for (const UpdateInputs& i : inputs) values.push_back(i.inverse_tokens);
  const uint8_t* begin = reinterpret_cast<const uint8_t*>(values.data());
  return {begin, begin + values.size() * sizeof(float)};
}

}  // namespace qlora::engine
