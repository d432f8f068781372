// A JSONL file as token samples: read, checked, tokenized in parallel, counted.

#ifndef QLORA_ENGINE_DATA_DATASET_H_
#define QLORA_ENGINE_DATA_DATASET_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io/env.h"
#include "engine/text/chat_format.h"
#include "engine/text/tokenizer.h"
#include "proto/job.pb.h"

namespace qlora::engine {

// One training sample. trained[i] says whether token i is a target; token 0 never is (nothing
// predicts it).
struct Sample {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;
  int64_t line = 0;    // of the file, from 1
  int64_t prompt = 0;  // tokens before the answer; 0: there is none (text), or not all was kept
};

struct DatasetReport {
  int64_t records = 0;         // lines that hold a record
  int64_t samples = 0;         // kept
  int64_t truncated = 0;       // longer than max_length
  int64_t without_target = 0;  // left out: no trained token (left)
  int64_t dropped_long = 0;    // left out by truncation: DROP
  int64_t duplicates = 0;      // kept samples equal to an earlier one
  int64_t tokens = 0;          // of kept samples
  int64_t trained_tokens = 0;
  int64_t longest = 0;           // tokens of the longest kept sample
  std::vector<int64_t> lengths;  // [b]: kept samples of 2^b to 2^(b+1) - 1 tokens
  proto::DataFormat::Value format = proto::DataFormat::AUTO;  // as found
  std::string chat_format;                                    // name, for MESSAGES
  std::string sha256;                                         // of the file
};

struct Dataset {
  std::vector<Sample> samples;  // in the file's order
  DatasetReport report;
};

// Reads `path` by the rules of `data` (defaults filled in); `max_samples` 0 means all. Errors name
// the file and the line. `tokenizer` may be null where the file turns out to be PRETOKENIZED:
// DataLoss (exit 65) for bad UTF-8, bad JSON, missing or mistyped fields, a file without any
// trained token. `on_record`, which may be empty, is called behind each record, on any thread.
absl::StatusOr<Dataset> LoadDataset(Env* env, const std::string& path, const proto::Data& data,
                                    const Tokenizer* tokenizer, int threads, int64_t max_samples,
                                    const std::function<void()>& on_record = {});

// Moves a share of the samples, chosen by (seed, line), to a data set of its own; at least one
// where fraction > 0.
Dataset SplitForEvaluation(Dataset* dataset, double fraction, uint64_t seed);

// SHA-256, in hex, of all tokens and of which of them are targets: what a run makes of its data,
// whatever the file and the tokenizer were. Empty for no samples.
std::string HashSamples(absl::Span<const Sample> samples);

// The chat format that `data` names, or with AUTO the one whose control tokens the tokenizer has;
// InvalidArgument where neither or both would do, or the tokenizer lacks a control token.
absl::StatusOr<const ChatFormat*> ChatFormatOf(const proto::Data& data, const Tokenizer& tokenizer);

// A few lines for people: counts, lengths, what was left out.
std::string DescribeDataset(const DatasetReport& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_DATASET_H_
