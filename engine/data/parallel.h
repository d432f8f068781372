// Independent work over indices, results in the order of the indices whatever the threads do.
#ifndef QLORA_ENGINE_DATA_PARALLEL_H_
#define QLORA_ENGINE_DATA_PARALLEL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace qlora::engine {

// Calls work(i) once for each i in [0, n), on `threads` threads (0 or less: one per core), in
// chunks of `chunk` neighbouring indices taken from a queue. work must be safe to call at once for
// different i. Returns when all is done.
void ForEachInParallel(int64_t n, int threads, int64_t chunk,
                       absl::FunctionRef<void(int64_t)> work);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_PARALLEL_H_
