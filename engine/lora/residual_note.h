// residual_init.json beside an adapter: A and B started from what quantization lost, so the adapter
// belongs to that one 4-bit base. On the 16-bit base, or merged into it, it would correct an error
// that is not there.

#ifndef QLORA_ENGINE_LORA_RESIDUAL_NOTE_H_
#define QLORA_ENGINE_LORA_RESIDUAL_NOTE_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/io/adapter_file.h"

namespace qlora::engine {

struct ResidualNote {
  std::string base_sha256;   // HashBase of the 16-bit checkpoint that was quantized
  std::string quantization;  // the job fields that give the same base: BaseFields
  friend bool operator==(const ResidualNote&, const ResidualNote&) = default;
};

// None where the folder has no such file. InvalidArgument for one that can't be read.
absl::StatusOr<std::optional<ResidualNote>> ReadResidualNote(Env* env, const std::string& folder);
absl::Status WriteResidualNote(const FileMaker& make, const ResidualNote& note);

// What to say to somebody who uses such an adapter.
std::string ResidualWarning(const std::string& folder);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_LORA_RESIDUAL_NOTE_H_
