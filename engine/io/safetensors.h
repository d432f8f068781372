// Reads one safetensors file through a memory map. The header is checked completely before anything
// is believed: sizes, JSON, names, types, shapes and that the tensors tile the data without hole or
// overlap. Format: u64 little-endian header length N, N bytes of JSON, then the data,
// little-endian, row-major.
#ifndef QLORA_ENGINE_IO_SAFETENSORS_H_
#define QLORA_ENGINE_IO_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/io/dtype.h"
#include "engine/io/env.h"

namespace qlora::engine {

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;  // outermost first; empty for a scalar
  int64_t offset = 0;          // bytes from the start of the file
  int64_t bytes = 0;

  int64_t elements() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;  // checked against overflow when the header was read
    return n;
  }
  // "BF16 [32, 64]".
  std::string Describe() const;
};

// The format's own limit on the header.
inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;
// Ours, on the tensors of one file. The largest published shards hold a few thousand.
inline constexpr int64_t kMaxSafetensorsTensors = 200'000;
inline constexpr int64_t kMaxTensorRank = 32;

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  int64_t data_start = 0;  // bytes from the start of the file
};

// Checks and parses the header of a file that starts with `prefix` and is `file_size` bytes long.
// `prefix` must hold the whole header, 8 + N bytes, or be the whole file. `path` is for messages
// only. DATA_LOSS where the file is cut short, INVALID_ARGUMENT where it contradicts itself or the
// format.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const uint8_t> prefix,
                                                         int64_t file_size, absl::string_view path);

// Thread safe once open. Copies share the map.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(Env* env, const std::string& path);

  const std::string& path() const { return path_; }
  // In the order of their data.
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // Null if there is none of that name.
  const TensorInfo* Find(absl::string_view name) const;
  // The tensor, or NOT_FOUND naming the file.
  absl::StatusOr<const TensorInfo*> Get(absl::string_view name) const;
  // Its bytes, valid as long as a copy of this object lives. Old files may start their data at any
  // address: the pointer is aligned to nothing but 1, so read elements with memcpy or ask IsAligned
  // first.
  const uint8_t* data(const TensorInfo& tensor) const { return file_.data() + tensor.offset; }
  absl::Span<const uint8_t> bytes(const TensorInfo& tensor) const {
    return {data(tensor), static_cast<size_t>(tensor.bytes)};
  }
  // See MappedFile::ReleasePages: a tensor of many gigabytes need not stay in memory once read.
  void ReleasePages(absl::Span<const uint8_t> part) const { file_.ReleasePages(part); }
  bool IsAligned(const TensorInfo& tensor, size_t alignment) const {
    return reinterpret_cast<uintptr_t>(data(tensor)) % alignment == 0;
  }

 private:
  std::string path_;
  MappedFile file_;
  SafetensorsHeader header_;
  absl::flat_hash_map<std::string, int64_t> index_;  // name -> place in header_.tensors
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_SAFETENSORS_H_
