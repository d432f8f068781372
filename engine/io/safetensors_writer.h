// Writes a safetensors file, byte for byte what the format's own writer makes of the same tensors:
// sorted by type (widest first), then name; header padded with spaces to 8 bytes; metadata
// {"format":"pt"}.
#ifndef QLORA_ENGINE_IO_SAFETENSORS_WRITER_H_
#define QLORA_ENGINE_IO_SAFETENSORS_WRITER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io/dtype.h"
#include "engine/io/env.h"

namespace qlora::engine {

struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
};

// Whether a file holds tensor a before tensor b.
bool InFileOrder(const TensorSpec& a, const TensorSpec& b);

// The order of a file's data: the format's own, or that of the specs, for tensors that come in an
// order of theirs. Readers take any.
enum class TensorOrder { kFormat, kGiven };

// Streams: the header goes out at once, then the data tensor by tensor, in pieces of any size.
//   writer = SafetensorsWriter::Create(std::move(file), specs);
//   for (const TensorSpec& t : writer->order()) writer->Append(bytes of t);
//   writer->Finish();
class SafetensorsWriter {
 public:
  // Writes the header. INVALID_ARGUMENT for a duplicate or empty name, a name of ours
  // ("__metadata__"), a negative extent, a size beyond int64.
  static absl::StatusOr<SafetensorsWriter> Create(
      std::unique_ptr<WritableFile> file, std::vector<TensorSpec> specs,
      const std::map<std::string, std::string>& metadata = {{"format", "pt"}},
      TensorOrder order = TensorOrder::kFormat);

  // The tensors in the order in which their data must be appended.
  const std::vector<TensorSpec>& order() const { return specs_; }
  // The next bytes of the data. FAILED_PRECONDITION beyond the end.
  absl::Status Append(absl::Span<const uint8_t> bytes);
  // Syncs and closes. FAILED_PRECONDITION, naming the first incomplete tensor, if data is missing.
  absl::Status Finish();

  // Size of the whole file in bytes.
  int64_t file_bytes() const { return header_bytes_ + data_bytes_; }

 private:
  SafetensorsWriter() = default;

  std::unique_ptr<WritableFile> file_;
  std::vector<TensorSpec> specs_;
  std::vector<int64_t> ends_;  // of each tensor, from the start of the data
  int64_t header_bytes_ = 0;
  int64_t data_bytes_ = 0;
  int64_t written_ = 0;
};

// Bytes of a tensor of that type and shape; INVALID_ARGUMENT on overflow, a negative extent, or
// packed elements that don't fill whole bytes. `name` is for messages only.
absl::StatusOr<int64_t> TensorBytes(Dtype dtype, absl::Span<const int64_t> shape,
                                    absl::string_view name);

struct TensorData {
  TensorSpec spec;
  absl::Span<const uint8_t> bytes;
};

// All at once, atomically: `path` holds the old contents or all of the new ones.
absl::Status WriteSafetensors(Env* env, const std::string& path, std::vector<TensorData> tensors,
                              const std::map<std::string, std::string>& metadata = {
                                  {"format", "pt"}});
// The same into a file that the caller opened; closed when done.
absl::Status WriteSafetensors(std::unique_ptr<WritableFile> file, std::vector<TensorData> tensors,
                              const std::map<std::string, std::string>& metadata = {
                                  {"format", "pt"}});

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_SAFETENSORS_WRITER_H_
