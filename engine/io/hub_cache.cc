#include "engine/io/hub_cache.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/io/environment.h"
#include "engine/io/model_files.h"

namespace qlora::engine {
namespace {

constexpr int64_t kMaxRefBytes = 4096;  // a ref holds 40 hex digits

struct HubId {
  std::string repo;  // "org/name", or a legacy "name"
  std::string revision;
};

bool IsIdPart(absl::string_view part) {
  if (!IsPlainName(part) || part.size() > 96 || part.front() == '.' || part.front() == '-') {
    return false;
  }
  for (char c : part) {
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    if (!allowed) return false;
  }
  return !absl::StrContains(part, "--") && !absl::StrContains(part, "..");
}

// The hub's rule for ids: one or two parts of letters, digits, '.', '_', '-'.
bool ParseHubId(absl::string_view model, HubId* id) {
  const std::pair<absl::string_view, absl::string_view> halves =
      absl::StrSplit(model, absl::MaxSplits('@', 1));
  const bool has_revision = absl::StrContains(model, '@');
  const std::vector<absl::string_view> parts = absl::StrSplit(halves.first, '/');
  if (parts.size() > 2) return false;
  for (absl::string_view part : parts) {
    if (!IsIdPart(part)) return false;
  }
  id->repo = std::string(halves.first);
  id->revision = has_revision ? std::string(halves.second) : "main";
  // A branch may hold slashes ("refs/pr/3"), but nothing that leaves the folder of refs.
  for (absl::string_view part : absl::StrSplit(id->revision, '/')) {
    if (!IsPlainName(part)) return false;
  }
  return true;
}

std::string DownloadCommand(const HubId& id) {
  const std::string arguments =
      absl::StrCat(id.repo, id.revision == "main" ? "" : absl::StrCat(" --revision ", id.revision));
  return absl::StrCat("hf download ", arguments,
                      "  (or, with an older huggingface_hub: huggingface-cli download ", arguments,
                      ")");
}

}  // namespace

std::string HubCacheFolder(const std::function<std::string(const char*)>& variable) {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (std::string value = variable(name); !value.empty()) return value;
  }
  if (std::string value = variable("HF_HOME"); !value.empty()) return JoinPath(value, "hub");
  if (std::string value = variable("XDG_CACHE_HOME"); !value.empty()) {
    return JoinPath(value, "huggingface/hub");
  }
  if (std::string value = variable("HOME"); !value.empty()) {
    return JoinPath(value, ".cache/huggingface/hub");
  }
  return "";
}

std::string HubCacheFolder() { return HubCacheFolder(EnvironmentVariable); }

absl::StatusOr<std::string> ResolveModel(Env* env, const std::string& model,
                                         const std::string& hub_cache_folder) {
  if (model.empty()) return absl::InvalidArgumentError("no model is named");
  if (env->IsFolder(model)) return model;
  HubId id;
  if (!ParseHubId(model, &id)) {
    return absl::NotFoundError(
        absl::StrCat("no folder ", model,
                     ", and it can't be a hub id, which looks like org/name or "
                     "org/name@revision"));
  }
  if (hub_cache_folder.empty()) {
    return absl::NotFoundError(
        absl::StrCat(model, " is no folder, and no hub cache is known: set HF_HUB_CACHE, or HOME"));
  }
  const std::string repo = JoinPath(
      hub_cache_folder, absl::StrCat("models--", absl::StrReplaceAll(id.repo, {{"/", "--"}})));
  std::string commit = id.revision;
  const std::string ref = JoinPath(JoinPath(repo, "refs"), id.revision);
  if (auto text = env->ReadFile(ref, kMaxRefBytes); text.ok()) {
    commit = std::string(absl::StripAsciiWhitespace(*text));
    if (!IsPlainName(commit)) {
      return absl::InvalidArgumentError(
          absl::StrCat(ref, " does not hold a commit's name: remove it and download again"));
    }
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  const std::string folder = JoinPath(JoinPath(repo, "snapshots"), commit);
  const std::string config = JoinPath(folder, kConfigFile);
  if (env->Stat(config, /*follow=*/true).ok()) return folder;
  const absl::string_view state = env->IsFolder(folder)
                                      ? " is there only in part (no config.json)"
                                      : " is neither a folder nor in the hub cache";
  return absl::NotFoundError(
      absl::StrCat(model, state, " (looked in ", repo,
                   "). Nothing is downloaded by itself; fetch it with:  ", DownloadCommand(id)));
}

}  // namespace qlora::engine
