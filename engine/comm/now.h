// The clock that deadlines between ranks go by.

#ifndef QLORA_ENGINE_COMM_NOW_H_
#define QLORA_ENGINE_COMM_NOW_H_

#include <chrono>

namespace qlora::engine {

// Seconds, which nobody sets back; from when does not matter.
inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_NOW_H_
