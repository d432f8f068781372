#include "engine/data/batcher.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/data/packer.h"
#include "engine/data/shuffle.h"

namespace qlora::engine {
namespace {

int64_t Length(const Sample& sample) { return static_cast<int64_t>(sample.ids.size()); }

int64_t Targets(const Sample& sample) {
  return sample.trained.empty() ? 0
                                : std::count(sample.trained.begin() + 1, sample.trained.end(), 1);
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sum of the `count` largest values.
int64_t SumOfLargest(std::vector<int64_t> values, int64_t count) {
  count = std::min<int64_t>(count, static_cast<int64_t>(values.size()));
  std::nth_element(values.begin(), values.begin() + count, values.end(), std::greater<>());
  return std::accumulate(values.begin(), values.begin() + count, int64_t{0});
}

// How many of the shortest samples fit into `tokens`.
int64_t MostThatFit(std::vector<int64_t> lengths, int64_t tokens) {
  std::sort(lengths.begin(), lengths.end());
  int64_t count = 0;
  for (const int64_t length : lengths) {
    if (length > tokens) break;
    tokens -= length;
    ++count;
  }
  return std::max<int64_t>(count, 1);
}

void Append(const Sample& sample, int64_t index, MicroBatch& batch) {
  const auto begin = static_cast<int32_t>(batch.ids.size());
  const auto length = static_cast<int32_t>(sample.ids.size());
  batch.documents.push_back({begin, length, begin, length});
  batch.samples.push_back(index);
  batch.ids.insert(batch.ids.end(), sample.ids.begin(), sample.ids.end());
  for (int32_t t = 0; t < length; ++t) {
    batch.positions.push_back(t);
    // Row t predicts token t + 1, which must belong to the same document.
    if (t + 1 < length && sample.trained[t + 1]) {
      batch.rows.push_back(begin + t);
      batch.targets.push_back(sample.ids[t + 1]);
    }
  }
}

}  // namespace

Batcher::Batcher(const Dataset* dataset, const BatcherOptions& options)
    : dataset_(dataset), options_(options) {
  if (options_.packing) {
    // The number of rows depends on the lengths alone: see PackBestFit.
    rows_per_epoch_ = static_cast<int64_t>(RowsOf(0).size());
  } else {
    rows_per_epoch_ = static_cast<int64_t>(dataset->samples.size());
  }
  steps_per_epoch_ =
      CeilDiv(rows_per_epoch_, options_.rows_per_micro_batch * options_.micro_batches_per_step);
}

Batcher::Rows Batcher::RowsOf(int64_t epoch) const {
  const auto& samples = dataset_->samples;
  const auto n = static_cast<int64_t>(samples.size());
  const auto epoch32 = static_cast<uint32_t>(epoch);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (options_.shuffle) {
    order = Permutation(n, options_.seed, epoch32, ShuffleStream::kSamples);
  }
  Rows rows;
  if (!options_.packing) {
    rows.reserve(n);
    for (const int64_t sample : order) rows.push_back({sample});
    return rows;
  }
  std::vector<int64_t> lengths;
  lengths.reserve(n);
  for (const Sample& sample : samples) lengths.push_back(Length(sample));
  rows = PackBestFit(lengths, order, options_.max_length);
  if (options_.shuffle) {
    // Packing puts the longest first, so the rows need an order of their own.
    const auto row_order = Permutation(static_cast<int64_t>(rows.size()), options_.seed, epoch32,
                                       ShuffleStream::kRows);
    Rows shuffled;
    shuffled.reserve(rows.size());
    for (const int64_t row : row_order) shuffled.push_back(std::move(rows[row]));
    return shuffled;
  }
  for (auto& row : rows) std::sort(row.begin(), row.end());
  std::sort(rows.begin(), rows.end());
  return rows;
}

BatchCapacity Batcher::capacity() const {
  std::vector<int64_t> lengths, targets;
  for (const Sample& sample : dataset_->samples) {
    lengths.push_back(Length(sample));
    targets.push_back(Targets(sample));
  }
  const int64_t rows = std::min(options_.rows_per_micro_batch, rows_per_epoch_);
  if (!options_.packing) {
    return {SumOfLargest(lengths, rows), rows, SumOfLargest(targets, rows)};
  }
  const int64_t row_tokens =
      std::max(options_.max_length, *std::max_element(lengths.begin(), lengths.end()));
  const int64_t all_tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const int64_t tokens = std::min(rows * row_tokens, all_tokens);
  const int64_t documents = MostThatFit(lengths, tokens);
  const int64_t trained =
      std::min(SumOfLargest(targets, documents), tokens - std::min(rows, documents));
  return {tokens, documents, trained};
}

int64_t Batcher::StepsOf(double epochs) const {
  return static_cast<int64_t>(std::ceil(epochs * static_cast<double>(steps_per_epoch_)));
}

double Batcher::EpochAt(int64_t step) const {
  return static_cast<double>(step) / static_cast<double>(steps_per_epoch_);
}

std::vector<MicroBatch> Batcher::Step(int64_t step) const {
  const int64_t epoch = step / steps_per_epoch_;
  if (epoch != cached_epoch_) {
    cached_rows_ = RowsOf(epoch);
    cached_epoch_ = epoch;
  }
  const int64_t per_step = options_.rows_per_micro_batch * options_.micro_batches_per_step;
  const int64_t begin = (step % steps_per_epoch_) * per_step;
  const int64_t rows = std::min(per_step, rows_per_epoch_ - begin);
  // The last step of an epoch shares what is left as evenly as it can: no micro-batch is empty
  // unless there are fewer rows than micro-batches.
  const int64_t each = rows / options_.micro_batches_per_step;
  const int64_t extra = rows % options_.micro_batches_per_step;
  std::vector<MicroBatch> batches(options_.micro_batches_per_step);
  int64_t row = begin;
  for (int64_t j = 0; j < options_.micro_batches_per_step; ++j) {
    for (const int64_t end = row + each + (j < extra); row < end; ++row) {
      for (const int64_t sample : cached_rows_[row]) {
        Append(dataset_->samples[sample], sample, batches[j]);
      }
    }
  }
  return batches;
}

int64_t Batcher::TrainedTokens(const std::vector<MicroBatch>& batch) {
  int64_t tokens = 0;
  for (const MicroBatch& micro_batch : batch) {
    tokens += static_cast<int64_t>(micro_batch.rows.size());
  }
  return tokens;
}

}  // namespace qlora::engine
