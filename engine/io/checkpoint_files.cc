#include "engine/io/checkpoint_files.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/io/json_file.h"
#include "engine/io/model_files.h"

namespace qlora::engine {
namespace {

// The index of a model of 100,000 tensors has about 10 MB.
constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxListed = 10;

std::string FirstOf(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kMaxListed);
  std::string text = absl::StrJoin(names.begin(), names.begin() + shown, ", ");
  if (shown < names.size()) absl::StrAppend(&text, " and ", names.size() - shown, " more");
  return text;
}

// Tensor name -> shard name, each a plain name.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(Env* env, const std::string& path) {
  auto json = ReadJsonFile(env, path, kMaxIndexBytes);
  if (!json.ok()) return json.status();
  const auto fail = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  if (!json->is_object() || !json->contains("weight_map") || !(*json)["weight_map"].is_object()) {
    return fail("needs an object \"weight_map\" of tensor names and files");
  }
  std::map<std::string, std::string> map;
  for (const auto& [tensor, file] : (*json)["weight_map"].items()) {
    if (!file.is_string())
      return fail(absl::StrCat("weight_map of ", tensor, " is not a file name"));
    const std::string name = file.get<std::string>();
    if (!IsPlainName(name)) {
      return fail(absl::StrCat("weight_map of ", tensor, " is \"", name,
                               "\": only plain file names of this folder are allowed"));
    }
    map.emplace(tensor, name);
  }
  if (map.empty()) return fail("weight_map is empty");
  return map;
}

}  // namespace

absl::StatusOr<ShardedModel> ShardedModel::Open(Env* env, const std::string& folder) {
  ShardedModel model;
  model.folder_ = folder;
  const std::string lone = JoinPath(folder, kModelFile);
  const std::string index = JoinPath(folder, kModelIndexFile);
  std::map<std::string, std::string> weight_map;
  std::vector<std::string> shards;
  if (env->Exists(lone)) {
    shards.push_back(kModelFile);
  } else if (env->Exists(index)) {
    auto map = ReadIndex(env, index);
    if (!map.ok()) return map.status();
    weight_map = *std::move(map);
    std::set<std::string> distinct;
    for (const auto& [tensor, file] : weight_map) distinct.insert(file);
    shards.assign(distinct.begin(), distinct.end());
  } else {
    return absl::NotFoundError(absl::StrCat(
        folder, " holds neither ", kModelFile, " nor ", kModelIndexFile,
        env->Exists(JoinPath(folder, "pytorch_model.bin"))
            ? " (pytorch_model.bin is a pickle and never read: convert it to safetensors)"
            : ""));
  }

  std::vector<std::string> missing;
  for (const std::string& shard : shards) {
    // Following links: a cache entry whose blob is gone is missing too.
    if (absl::IsNotFound(env->Stat(JoinPath(folder, shard), /*follow=*/true).status())) {
      missing.push_back(shard);
    }
  }
  if (!missing.empty()) {
    return absl::NotFoundError(absl::StrCat(folder, ": missing weight files: ", FirstOf(missing),
                                            ": is the download complete?"));
  }
  std::map<std::string, int> file_of;
  for (const std::string& shard : shards) {
    auto file = SafetensorsFile::Open(env, JoinPath(folder, shard));
    if (!file.ok()) return file.status();
    file_of[shard] = static_cast<int>(model.files_.size());
    model.files_.push_back(*std::move(file));
  }

  std::vector<std::string> absent;
  for (const auto& [tensor, shard] : weight_map) {
    if (model.files_[file_of[shard]].Find(tensor) == nullptr) {
      absent.push_back(absl::StrCat(tensor, " (in ", shard, ")"));
    }
  }
  if (!absent.empty()) {
    return absl::NotFoundError(
        absl::StrCat(index, ": tensors that their files don't hold: ", FirstOf(absent)));
  }
  for (size_t f = 0; f < model.files_.size(); ++f) {
    const std::vector<TensorInfo>& tensors = model.files_[f].tensors();
    for (size_t t = 0; t < tensors.size(); ++t) {
      const auto it = weight_map.find(tensors[t].name);
      if (!weight_map.empty() && (it == weight_map.end() || it->second != shards[f])) {
        model.unlisted_.push_back(absl::StrCat(tensors[t].name, " (in ", shards[f], ")"));
        continue;
      }
      model.index_.emplace(tensors[t].name,
                           std::make_pair(static_cast<int>(f), static_cast<int64_t>(t)));
      model.total_bytes_ += tensors[t].bytes;
    }
  }
  return model;
}

absl::StatusOr<ShardedModel::Tensor> ShardedModel::Get(absl::string_view name) const {
  const auto it = index_.find(name);
  if (it == index_.end()) {
    return absl::NotFoundError(absl::StrCat(folder_, " holds no tensor ", name));
  }
  const SafetensorsFile& file = files_[it->second.first];
  return Tensor{&file, &file.tensors()[it->second.second]};
}

std::vector<std::string> ShardedModel::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : index_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace qlora::engine
