// While one of these lives no std::thread can be started: what threads get by default is a stack
// that no address space holds.
#ifndef QLORA_TESTS_SUPPORT_NO_THREADS_H_
#define QLORA_TESTS_SUPPORT_NO_THREADS_H_

#include <pthread.h>

#include <cstddef>
#include <cstdlib>

namespace qlora::tests {

class NoThreads {
 public:
  NoThreads() {
    pthread_attr_t huge;
    Require(pthread_getattr_default_np(&before_));
    Require(pthread_getattr_default_np(&huge));
    Require(pthread_attr_setstacksize(&huge, size_t{1} << 60));
    Require(pthread_setattr_default_np(&huge));
    pthread_attr_destroy(&huge);
  }
  ~NoThreads() {
    Require(pthread_setattr_default_np(&before_));
    pthread_attr_destroy(&before_);
  }
  NoThreads(const NoThreads&) = delete;
  NoThreads& operator=(const NoThreads&) = delete;

 private:
  static void Require(int error) {
    if (error != 0) std::abort();
  }
  pthread_attr_t before_;
};

}  // namespace qlora::tests

#endif  // QLORA_TESTS_SUPPORT_NO_THREADS_H_
