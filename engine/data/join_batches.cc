#include "engine/data/join_batches.h"

namespace qlora::engine {
namespace {

template <class T>
void Append(const std::vector<T>& from, std::vector<T>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

}  // namespace

MicroBatchInputs JoinedBatch::inputs() const {
  MicroBatchInputs inputs = all.inputs();
  inputs.segments = segments;
  return inputs;
}

JoinedBatch JoinBatches(absl::Span<const MicroBatch* const> batches) {
  JoinedBatch joined;
  MicroBatch& all = joined.all;
  for (const MicroBatch* batch : batches) {
    BatchSegment& segment = joined.segments.emplace_back();
    segment.first_token = segment.end_token = int32_t(all.ids.size());
    segment.first_row = segment.end_row = int32_t(all.rows.size());
    if (batch == nullptr) continue;
    const int32_t first = segment.first_token;
    for (const DocumentBounds& d : batch->documents) {
      all.documents.push_back(
          {d.query_begin + first, d.query_rows, d.key_begin + first, d.key_rows});
    }
    for (const int32_t row : batch->rows) all.rows.push_back(row + first);
    Append(batch->ids, &all.ids);
    Append(batch->positions, &all.positions);
    Append(batch->targets, &all.targets);
    Append(batch->samples, &all.samples);
    segment.end_token = int32_t(all.ids.size());
    segment.end_row = int32_t(all.rows.size());
  }
  return joined;
}

}  // namespace qlora::engine
