// Where this program keeps what it may lose: the user's cache folder.
#ifndef QLORA_ENGINE_IO_USER_CACHE_H_
#define QLORA_ENGINE_IO_USER_CACHE_H_

#include <functional>
#include <string>

namespace qlora::engine {

// $XDG_CACHE_HOME/qlora_engine or, without it, $HOME/.cache/qlora_engine; empty where neither names
// an absolute path. `variable` returns an environment variable's value, "" if unset.
std::string UserCacheFolder(const std::function<std::string(const char*)>& variable);
// The same with the variables of this process.
std::string UserCacheFolder();

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_USER_CACHE_H_
