#include "engine/io/event_file.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/io/crc32c.h"
#include "proto/tensorboard_event.pb.h"

namespace qlora::engine {
namespace {

std::string LittleEndian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

absl::Status WriteEvent(WritableFile* file, const proto::TensorboardEvent& event) {
  return file->Append(TfRecord(event.SerializeAsString()));
}

// Files of one folder in one second by one process (a resume within a test): tried in turn.
constexpr int kMaxNameTries = 1000;

}  // namespace

std::string TfRecord(absl::string_view payload) {
  const std::string length = LittleEndian(payload.size(), 8);
  return absl::StrCat(length, LittleEndian(MaskCrc32c(Crc32c(length)), 4), payload,
                      LittleEndian(MaskCrc32c(Crc32c(payload)), 4));
}

absl::StatusOr<EventFile> EventFile::Create(Env* env, const std::string& folder,
                                            int64_t resumed_step) {
  const double now = env->NowSeconds();
  // Ten digits: TensorBoard reads the files of a folder in the order of their names.
  const std::string stem =
      JoinPath(folder, absl::StrFormat("events.out.tfevents.%010d.%s.%d", static_cast<int64_t>(now),
                                       env->HostName(), env->ProcessId()));
  std::string path = stem;
  for (int i = 1; env->Exists(path); ++i) {
    if (i == kMaxNameTries)
      return absl::AlreadyExistsError(absl::StrCat(stem, " and all after it"));
    path = absl::StrCat(stem, ".", i);
  }
  auto file = env->NewWritableFile(path);
  if (!file.ok()) return file.status();
  // Sync alone keeps the contents, but not the name.
  if (absl::Status status = env->SyncFolder(folder); !status.ok()) return status;
  EventFile events(env, path, *std::move(file));
  proto::TensorboardEvent version;
  version.set_wall_time(now);
  // Readers drop steps that a restart repeats only from version 2 on.
  version.set_file_version("brain.Event:2");
  if (absl::Status status = WriteEvent(events.file_.get(), version); !status.ok()) return status;
  proto::TensorboardEvent start;
  start.set_wall_time(now);
  // What earlier files say of this step and later ones is dropped: of a new run, everything.
  start.set_step(resumed_step > 0 ? resumed_step + 1 : 0);
  start.mutable_session_log()->set_status(proto::TensorboardSessionLog::START);
  if (absl::Status status = WriteEvent(events.file_.get(), start); !status.ok()) return status;
  return events;
}

absl::Status EventFile::WriteScalars(int64_t step,
                                     const std::vector<std::pair<std::string, float>>& values) {
  proto::TensorboardEvent event;
  event.set_wall_time(env_->NowSeconds());
  event.set_step(step);
  for (const auto& [tag, value] : values) {
    proto::TensorboardSummary::Value* entry = event.mutable_summary()->add_value();
    entry->set_tag(tag);
    entry->set_simple_value(value);
  }
  return WriteEvent(file_.get(), event);
}

absl::Status EventFile::Close() {
  if (absl::Status status = file_->Sync(); !status.ok()) return status;
  return file_->Close();
}

}  // namespace qlora::engine
