#include "engine/data/records_file.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/data/parallel.h"
#include "engine/input_error.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

absl::string_view AsText(const MappedFile& file) {
  return absl::string_view(reinterpret_cast<const char*>(file.data()), file.size());
}

}  // namespace

RecordsFile::RecordsFile(std::string path, const proto::Data& data, MappedFile file,
                         std::vector<JsonlLine> lines, proto::DataFormat::Value format,
                         RecordEncoder encoder)
    : path_(std::move(path)),
      data_(&data),
      file_(std::move(file)),
      lines_(std::move(lines)),
      format_(format),
      encoder_(std::move(encoder)) {}

absl::string_view RecordsFile::bytes() const { return AsText(file_); }

absl::StatusOr<RecordsFile> RecordsFile::Open(Env* env, const std::string& path,
                                              const proto::Data& data, const Tokenizer* tokenizer,
                                              int64_t max_records) {
  auto file = env->MapFile(path);
  if (!file.ok()) return AsInputError(file.status());
  auto lines = SplitJsonl(AsText(*file), path, max_records);
  if (!lines.ok()) return lines.status();
  if (lines->empty()) {
    return proto::BadDataError(
        absl::StrCat(path, ": found no record; allowed: JSONL, one JSON object per line"));
  }
  proto::DataFormat::Value format = data.format();
  if (format == proto::DataFormat::AUTO) {
    auto first = ParseJsonlLine(lines->front(), path);
    if (!first.ok()) return first.status();
    auto detected = DetectFormat(*first, data);
    if (!detected.ok()) {
      return proto::Annotate(detected.status(), JsonlPlace(path, lines->front().number));
    }
    format = *detected;
  }
  auto encoder = RecordEncoder::Create(tokenizer, data, format);
  if (!encoder.ok()) return proto::Annotate(encoder.status(), path);
  return RecordsFile(path, data, *std::move(file), *std::move(lines), format, *std::move(encoder));
}

absl::Status RecordsFile::ForEach(
    int threads, absl::FunctionRef<absl::Status(int64_t i, const Record&)> work) const {
  // Records take some 10 microseconds to 10 milliseconds: 16 at a time keep the queue's cost small
  // and a thread's last chunk short.
  constexpr int64_t kChunk = 16;
  constexpr int kMaxShown = 5;
  std::vector<absl::Status> results(lines_.size());
  ForEachInParallel(lines_.size(), threads, kChunk, [&](int64_t i) {
    auto json = ParseJsonlLine(lines_[i], path_);
    if (!json.ok()) {
      results[i] = json.status();
      return;
    }
    auto record = ReadRecord(*json, format_, *data_);
    absl::Status status = record.ok() ? work(i, *record) : record.status();
    if (!status.ok()) results[i] = proto::Annotate(status, JsonlPlace(path_, lines_[i].number));
  });
  int bad = 0;
  absl::Status first;
  std::string all;
  for (const absl::Status& status : results) {
    if (status.ok()) continue;
    if (++bad == 1) first = status;
    if (bad <= kMaxShown) absl::StrAppend(&all, "\n  ", status.message());
  }
  if (bad <= 1) return AsInputError(first);
  if (bad > kMaxShown) absl::StrAppend(&all, "\n  and ", bad - kMaxShown, " more");
  return proto::BadDataError(absl::StrCat(path_, ": ", bad, " bad records:", all));
}

}  // namespace qlora::engine
