// A fresh folder on the real disk, gone with the object.
#ifndef QLORA_TESTS_ENGINE_IO_TEMP_FOLDER_H_
#define QLORA_TESTS_ENGINE_IO_TEMP_FOLDER_H_

#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/io/atomic_file.h"
#include "engine/io/env.h"

namespace qlora::tests {

class TempFolder {
 public:
  TempFolder() {
    const char* base = std::getenv("TMPDIR");
    path_ = engine::JoinPath(base != nullptr ? base : "/tmp",
                             "qlora-test-" + engine::Env::Default()->RandomId());
    status_ = engine::Env::Default()->CreateFolder(path_);
  }
  ~TempFolder() { (void)engine::Env::Default()->RemoveAll(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const { return engine::JoinPath(path_, name); }
  absl::Status Write(absl::string_view name, absl::string_view contents) const {
    return engine::AtomicWriteFile(engine::Env::Default(), File(name), contents);
  }

 private:
  std::string path_;
  absl::Status status_;
};

}  // namespace qlora::tests

#endif  // QLORA_TESTS_ENGINE_IO_TEMP_FOLDER_H_
