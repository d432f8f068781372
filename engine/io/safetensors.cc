#include "engine/io/safetensors.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace qlora::engine {

std::string TensorInfo::Describe() const {
  return absl::StrCat(DtypeName(dtype), " [", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(Env* env, const std::string& path) {
  auto mapped = env->MapFile(path);
  if (!mapped.ok()) return mapped.status();
  auto header = ParseSafetensorsHeader(mapped->bytes(), static_cast<int64_t>(mapped->size()), path);
  if (!header.ok()) return header.status();
  SafetensorsFile file;
  file.path_ = path;
  file.file_ = *std::move(mapped);
  file.header_ = *std::move(header);
  file.index_.reserve(file.header_.tensors.size());
  for (size_t i = 0; i < file.header_.tensors.size(); ++i) {
    file.index_.emplace(file.header_.tensors[i].name, static_cast<int64_t>(i));
  }
  return file;
}

const TensorInfo* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &header_.tensors[it->second];
}

absl::StatusOr<const TensorInfo*> SafetensorsFile::Get(absl::string_view name) const {
  const TensorInfo* tensor = Find(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat(path_, " holds no tensor ", name));
  }
  return tensor;
}

}  // namespace qlora::engine
