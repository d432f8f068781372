// A data file opened: its lines, its format, and an encoder for it.
#ifndef QLORA_ENGINE_DATA_RECORDS_FILE_H_
#define QLORA_ENGINE_DATA_RECORDS_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/data/encode_record.h"
#include "engine/data/jsonl.h"
#include "engine/io/env.h"
#include "engine/text/tokenizer.h"
#include "proto/job.pb.h"

namespace qlora::engine {

class RecordsFile {
 public:
  // Maps `path`, cuts it into lines and settles the format, by the first record where data.format
  // is AUTO. `data` (defaults filled in) and `tokenizer` (null for PRETOKENIZED alone) must outlive
  // it. DataLoss for a file without a record; `max_records` 0 means all.
  static absl::StatusOr<RecordsFile> Open(Env* env, const std::string& path,
                                          const proto::Data& data, const Tokenizer* tokenizer,
                                          int64_t max_records);

  const std::vector<JsonlLine>& lines() const { return lines_; }
  proto::DataFormat::Value format() const { return format_; }
  const RecordEncoder& encoder() const { return encoder_; }
  absl::string_view bytes() const;

  // Reads record i and gives it to work(i, record) for all i, on `threads` threads. If any is bad
  // or work fails, the first five errors in the file's order are one error, with the number of all.
  absl::Status ForEach(int threads,
                       absl::FunctionRef<absl::Status(int64_t i, const Record&)> work) const;

 private:
  RecordsFile(std::string path, const proto::Data& data, MappedFile file,
              std::vector<JsonlLine> lines, proto::DataFormat::Value format, RecordEncoder encoder);

  std::string path_;
  const proto::Data* data_;
  MappedFile file_;
  std::vector<JsonlLine> lines_;
  proto::DataFormat::Value format_;
  RecordEncoder encoder_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_RECORDS_FILE_H_
