#include "engine/commands/logits_file.h"

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"

namespace qlora::engine {

absl::StatusOr<LogitsFile> LogitsFile::Create(Env* env, const std::string& path,
                                              const Dataset& data, int64_t vocab) {
  std::vector<TensorSpec> specs;
  for (const Sample& sample : data.samples) {
    specs.push_back(
        {absl::StrCat("logits.", specs.size()), Dtype::kF32, {int64_t(sample.ids.size()), vocab}});
  }
  absl::StatusOr<std::unique_ptr<WritableFile>> file = NewAtomicFile(env, path);
  if (!file.ok()) return file.status();
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(
      *std::move(file), std::move(specs), {{"format", "pt"}}, TensorOrder::kGiven);
  if (!writer.ok()) return writer.status();
  return LogitsFile(*std::move(writer), vocab);
}

absl::Status LogitsFile::Take(const MicroBatch& batch, absl::Span<const float> logits) {
  for (const DocumentBounds& d : batch.documents) {
    const absl::Span<const float> rows =
        logits.subspan(int64_t(d.query_begin) * vocab_, int64_t(d.query_rows) * vocab_);
    const absl::Status written = writer_.Append(
        {reinterpret_cast<const uint8_t*>(rows.data()), rows.size() * sizeof(float)});
    if (!written.ok()) return written;
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
