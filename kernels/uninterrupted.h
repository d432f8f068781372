// Calls to the system that a signal may interrupt.

#ifndef QLORA_KERNELS_UNINTERRUPTED_H_
#define QLORA_KERNELS_UNINTERRUPTED_H_

#include <cerrno>

namespace qlora::kernels {

// What `call` returns, made again as long as it is −1 with EINTR.
template <typename Call>
auto Uninterrupted(const Call& call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_UNINTERRUPTED_H_
