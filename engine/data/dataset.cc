#include "engine/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/data/records_file.h"
#include "engine/data/shuffle.h"
#include "engine/io/sha256.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// What became of a record.
struct Outcome {
  Sample sample;
  bool truncated = false;
  bool dropped = false;
};

// Nothing predicts a sample's first token.
int64_t Targets(const Sample& sample) {
  if (sample.trained.empty()) return 0;
  return std::count(sample.trained.begin() + 1, sample.trained.end(), 1);
}

absl::Status Cut(const proto::Data& data, Outcome& outcome) {
  const size_t max_length = data.max_length();
  Sample& sample = outcome.sample;
  if (sample.ids.size() <= max_length) return absl::OkStatus();
  switch (data.truncation()) {
    case proto::Truncation::DROP:
      outcome.dropped = true;
      sample = {};
      return absl::OkStatus();
    case proto::Truncation::ERROR:
      return proto::BadDataError(
          absl::StrCat("found ", sample.ids.size(), " tokens; allowed: data.max_length, ",
                       max_length, "; raise it, or set data.truncation: TRUNCATE or DROP"));
    default:
      outcome.truncated = true;
      sample.ids.resize(max_length);
      sample.trained.resize(max_length);
      if (sample.prompt >= int64_t(max_length)) sample.prompt = 0;
      return absl::OkStatus();
  }
}

// Counts, and keeps what there is something to learn from.
void Gather(std::vector<Outcome> outcomes, Dataset& dataset) {
  DatasetReport& report = dataset.report;
  report.records = static_cast<int64_t>(outcomes.size());
  for (Outcome& outcome : outcomes) {
    report.truncated += outcome.truncated;
    report.dropped_long += outcome.dropped;
    if (outcome.dropped) continue;
    const int64_t targets = Targets(outcome.sample);
    if (targets == 0) {
      ++report.without_target;
      continue;
    }
    const auto length = static_cast<int64_t>(outcome.sample.ids.size());
    report.tokens += length;
    report.trained_tokens += targets;
    report.longest = std::max(report.longest, length);
    size_t bucket = 0;
    while ((int64_t{2} << bucket) <= length) ++bucket;
    if (report.lengths.size() <= bucket) report.lengths.resize(bucket + 1);
    ++report.lengths[bucket];
    dataset.samples.push_back(std::move(outcome.sample));
  }
  report.samples = static_cast<int64_t>(dataset.samples.size());
  absl::flat_hash_set<std::pair<absl::string_view, absl::string_view>> seen;
  for (const Sample& sample : dataset.samples) {
    const absl::string_view ids(reinterpret_cast<const char*>(sample.ids.data()),
                                sample.ids.size() * sizeof(int32_t));
    const absl::string_view trained(reinterpret_cast<const char*>(sample.trained.data()),
                                    sample.trained.size());
    report.duplicates += !seen.insert({ids, trained}).second;
  }
}

}  // namespace

absl::StatusOr<Dataset> LoadDataset(Env* env, const std::string& path, const proto::Data& data,
                                    const Tokenizer* tokenizer, int threads, int64_t max_samples,
                                    const std::function<void()>& on_record) {
  auto file = RecordsFile::Open(env, path, data, tokenizer, max_samples);
  if (!file.ok()) return file.status();
  std::vector<Outcome> outcomes(file->lines().size());
  absl::Status status = file->ForEach(threads, [&](int64_t i, const Record& record) {
    auto tokens = file->encoder().Encode(record);
    if (on_record) on_record();
    if (!tokens.ok()) return tokens.status();
    outcomes[i].sample = {std::move(tokens->ids), std::move(tokens->trained),
                          file->lines()[i].number, tokens->prompt};
    return Cut(data, outcomes[i]);
  });
  if (!status.ok()) return status;
  Dataset dataset;
  dataset.report.format = file->format();
  if (file->format() == proto::DataFormat::MESSAGES) {
    dataset.report.chat_format = file->encoder().chat_format()->name;
  }
  Gather(std::move(outcomes), dataset);
  dataset.report.sha256 = Sha256Hex(file->bytes());
  if (dataset.samples.empty()) {
    const DatasetReport& report = dataset.report;
    const bool too_long = report.dropped_long + report.truncated > 0;
    return proto::BadDataError(absl::StrCat(
        path, ": found no trained token in ", report.records, " records; nothing can be learned ",
        too_long ? absl::StrCat("of what data.max_length, ", data.max_length(),
                                ", leaves of them (", report.dropped_long, " left out, ",
                                report.truncated, " cut to it before their answers): raise it")
                 : absl::StrCat("from this file (", report.without_target,
                                " without a token to predict)")));
  }
  return dataset;
}

Dataset SplitForEvaluation(Dataset* dataset, double fraction, uint64_t seed) {
  Dataset held_out;
  held_out.report.format = dataset->report.format;
  held_out.report.chat_format = dataset->report.chat_format;
  held_out.report.sha256 = dataset->report.sha256;
  const auto n = static_cast<int64_t>(dataset->samples.size());
  // One sample at least on either side: a data set of one can't be split.
  if (fraction <= 0 || n < 2) return held_out;
  const int64_t count =
      std::clamp<int64_t>(std::llround(fraction * static_cast<double>(n)), 1, n - 1);
  const std::vector<int64_t> order = Permutation(n, seed, 0, ShuffleStream::kSplit);
  std::vector<bool> is_held_out(n);
  for (int64_t i = 0; i < count; ++i) is_held_out[order[i]] = true;

  std::vector<Outcome> kept, moved;
  for (int64_t i = 0; i < n; ++i) {
    (is_held_out[i] ? moved : kept).push_back({std::move(dataset->samples[i])});
  }
  // What was left out or cut belongs to the file as a whole and stays with the larger part.
  DatasetReport whole = dataset->report;
  dataset->samples.clear();
  dataset->report = DatasetReport();
  Gather(std::move(kept), *dataset);
  Gather(std::move(moved), held_out);
  dataset->report.records = whole.records - held_out.report.records;
  dataset->report.truncated = whole.truncated;
  dataset->report.without_target = whole.without_target;
  dataset->report.dropped_long = whole.dropped_long;
  dataset->report.format = whole.format;
  dataset->report.chat_format = whole.chat_format;
  dataset->report.sha256 = whole.sha256;
  return held_out;
}

std::string HashSamples(absl::Span<const Sample> samples) {
  if (samples.empty()) return "";
  Sha256 hash;
  const auto add = [&](const void* data, size_t bytes) {
    hash.Update({static_cast<const char*>(data), bytes});
  };
  for (const Sample& sample : samples) {
    const int64_t tokens = int64_t(sample.ids.size());
    add(&tokens, sizeof(tokens));
    add(sample.ids.data(), sample.ids.size() * sizeof(sample.ids[0]));
    add(sample.trained.data(), sample.trained.size());
  }
  return absl::BytesToHexString(hash.Finish());
}

}  // namespace qlora::engine
