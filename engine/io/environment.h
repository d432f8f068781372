// Variables of this process's environment.

#ifndef QLORA_ENGINE_IO_ENVIRONMENT_H_
#define QLORA_ENGINE_IO_ENVIRONMENT_H_

#include <cstdlib>
#include <string>

namespace qlora::engine {

// "" if unset.
inline std::string EnvironmentVariable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_ENVIRONMENT_H_
