// eval.logits_file: the logits of all tokens of the held-out samples, written as they are computed.

#ifndef QLORA_ENGINE_COMMANDS_LOGITS_FILE_H_
#define QLORA_ENGINE_COMMANDS_LOGITS_FILE_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/data/batcher.h"
#include "engine/data/dataset.h"
#include "engine/io/env.h"
#include "engine/io/safetensors_writer.h"

namespace qlora::engine {

class LogitsFile {
 public:
  // Begins a safetensors file that appears at `path` when it is finished: for each sample i of
  // `data` a tensor "logits.<i>", F32 [tokens of the sample, vocab], one behind the other in the
  // samples' order. Errors are those of `env`.
  static absl::StatusOr<LogitsFile> Create(Env* env, const std::string& path, const Dataset& data,
                                           int64_t vocab);

  // A LogitsSink. Batches come in the samples' order, as an evaluation cuts them.
  absl::Status Take(const MicroBatch& batch, absl::Span<const float> logits);
  absl::Status Finish() { return writer_.Finish(); }

 private:
  LogitsFile(SafetensorsWriter writer, int64_t vocab) : writer_(std::move(writer)), vocab_(vocab) {}

  SafetensorsWriter writer_;
  int64_t vocab_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_LOGITS_FILE_H_
