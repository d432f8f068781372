#include "engine/io/user_cache.h"

#include "engine/io/env.h"
#include "engine/io/environment.h"

namespace qlora::engine {

std::string UserCacheFolder(const std::function<std::string(const char*)>& variable) {
  // "All paths must be absolute. If a relative path is encountered it should be ignored": XDG Base
  // Directory Specification 0.8.
  if (const std::string cache = variable("XDG_CACHE_HOME"); cache.starts_with('/')) {
    return JoinPath(cache, "qlora_engine");
  }
  if (const std::string home = variable("HOME"); home.starts_with('/')) {
    return JoinPath(home, ".cache/qlora_engine");
  }
  return "";
}

std::string UserCacheFolder() { return UserCacheFolder(EnvironmentVariable); }

}  // namespace qlora::engine
