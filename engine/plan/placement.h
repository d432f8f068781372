// Places transient buffers in one arena so that buffers alive at the same time never overlap, but
// for the output of an op that may work in place: it takes the bytes of the input that dies there.

#ifndef QLORA_ENGINE_PLAN_PLACEMENT_H_
#define QLORA_ENGINE_PLAN_PLACEMENT_H_

#include <cstdint>
#include <vector>

#include "engine/record/program.h"

namespace qlora::engine {

struct Placement {
  std::vector<int64_t>
      offset;         // by BufferId; −1 for a buffer that no piece touches or that is persistent
  int64_t bytes = 0;  // of the arena: the largest piece's need
};

// Pieces run one after another and share the arena. Largest buffers are placed first, each at the
// lowest offset that is free over its lifetime; ties go to the earlier buffer, so that the result
// is a function of the program alone.
Placement PlaceTransients(const Program& program);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLACEMENT_H_
