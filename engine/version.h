// The engine's version, as every output names it.

#ifndef QLORA_ENGINE_VERSION_H_
#define QLORA_ENGINE_VERSION_H_

namespace qlora::engine {

inline constexpr char kEngineVersion[] = "0.1.0";

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_VERSION_H_
