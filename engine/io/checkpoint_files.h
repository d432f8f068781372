// The weights of a model folder: one model.safetensors, or shards named by
// model.safetensors.index.json.
#ifndef QLORA_ENGINE_IO_CHECKPOINT_FILES_H_
#define QLORA_ENGINE_IO_CHECKPOINT_FILES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/io/env.h"
#include "engine/io/safetensors.h"

namespace qlora::engine {

// Thread safe once open. Copies share the maps.
class ShardedModel {
 public:
  // A lone model.safetensors wins over an index, as in Transformers. Shards of an index must be
  // plain names in the folder (no '/', no ".."), be there, and hold every tensor that the index
  // maps to them. NOT_FOUND if the folder has neither; all missing shards or tensors are named in
  // one go (first ten).
  static absl::StatusOr<ShardedModel> Open(Env* env, const std::string& folder);

  struct Tensor {
    const SafetensorsFile* file;
    const TensorInfo* info;
    const uint8_t* data() const { return file->data(*info); }
    absl::Span<const uint8_t> bytes() const { return file->bytes(*info); }
  };

  bool Has(absl::string_view name) const { return index_.contains(name); }
  // NOT_FOUND names the folder. The views live as long as this object.
  absl::StatusOr<Tensor> Get(absl::string_view name) const;
  // All names, sorted.
  std::vector<std::string> Names() const;

  const std::string& folder() const { return folder_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  // Sum of the tensors' bytes.
  int64_t total_bytes() const { return total_bytes_; }
  // Tensors that a shard holds and the index doesn't name; they are not offered by Get. Worth a
  // warning.
  const std::vector<std::string>& unlisted() const { return unlisted_; }

 private:
  std::string folder_;
  std::vector<SafetensorsFile> files_;
  absl::flat_hash_map<std::string, std::pair<int, int64_t>> index_;  // name -> file, place in it
  std::vector<std::string> unlisted_;
  int64_t total_bytes_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_CHECKPOINT_FILES_H_
