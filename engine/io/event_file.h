// Scalars for TensorBoard: events.out.tfevents.<seconds>.<host>.<pid>, a TFRecord file of Event
// messages. A record: u64 length | u32 masked CRC-32C of the length | message | u32 masked CRC-32C
// of the message.
#ifndef QLORA_ENGINE_IO_EVENT_FILE_H_
#define QLORA_ENGINE_IO_EVENT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"

namespace qlora::engine {

// The framing alone.
std::string TfRecord(absl::string_view payload);

class EventFile {
 public:
  // A new file in `folder`, never an existing one. Tells TensorBoard to forget what earlier files
  // in the folder say of steps after `resumed_step`, so that a run that was resumed, or begun again
  // (0), shows one curve.
  static absl::StatusOr<EventFile> Create(Env* env, const std::string& folder,
                                          int64_t resumed_step);

  // One event with all the values; reaches the system before it returns (a kill loses nothing).
  absl::Status WriteScalars(int64_t step, const std::vector<std::pair<std::string, float>>& values);
  absl::Status Sync() { return file_->Sync(); }
  absl::Status Close();

  const std::string& path() const { return path_; }

 private:
  EventFile(Env* env, std::string path, std::unique_ptr<WritableFile> file)
      : env_(env), path_(std::move(path)), file_(std::move(file)) {}

  Env* env_;
  std::string path_;
  std::unique_ptr<WritableFile> file_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_EVENT_FILE_H_
