// A library to be preloaded into the program: notes the largest piece of memory that it asks the
// C library for at once.
//   QLORA_LARGEST_ALLOCATION  file that gets its bytes, when the program ends
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

// glibc's own, beneath the names that this library takes: dlsym would allocate itself.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {

std::atomic<size_t> largest{0};

void Note(size_t bytes) {
  size_t seen = largest.load(std::memory_order_relaxed);
  while (bytes > seen && !largest.compare_exchange_weak(seen, bytes)) {
  }
}

struct Reporter {
  ~Reporter() {
    const char* const path = getenv("QLORA_LARGEST_ALLOCATION");
    FILE* const file = path == nullptr ? nullptr : fopen(path, "w");
    if (file == nullptr) return;
    fprintf(file, "%zu", largest.load());
    fclose(file);
  }
} reporter;

}  // namespace

extern "C" {

void* malloc(size_t bytes) {
  Note(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  size_t all = 0;
  Note(__builtin_mul_overflow(count, bytes, &all) ? SIZE_MAX : all);
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  Note(bytes);
  return __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  Note(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** to, size_t alignment, size_t bytes) {
  *to = memalign(alignment, bytes);
  return *to == nullptr ? ENOMEM : 0;
}

}  // extern "C"
