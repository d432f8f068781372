// Finds the folder of a model: a path as given, or a hub id "org/name[@revision]" in the Hugging
// Face cache of this machine. Nothing is ever downloaded; what is missing is answered with the
// command that fetches it.
#ifndef QLORA_ENGINE_IO_HUB_CACHE_H_
#define QLORA_ENGINE_IO_HUB_CACHE_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/io/env.h"

namespace qlora::engine {

// The folder of the hub cache, as huggingface_hub finds it: $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE,
// $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub, $HOME/.cache/huggingface/hub. `variable` returns
// an environment variable's value, "" if unset. Empty if none can be made out.
std::string HubCacheFolder(const std::function<std::string(const char*)>& variable);
// The same with the variables of this process.
std::string HubCacheFolder();

// The folder that holds the model's config.json. An existing folder is taken as it is and wins over
// a hub id. A revision is a branch or tag (refs/<revision> holds the commit) or the commit itself;
// default "main". NOT_FOUND with the download command, or naming the folder where `model` can't be
// a hub id.
absl::StatusOr<std::string> ResolveModel(Env* env, const std::string& model,
                                         const std::string& hub_cache_folder);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_HUB_CACHE_H_
