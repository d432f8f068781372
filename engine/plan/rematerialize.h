// Recomputation as a rewrite of the program: a dropped buffer's producer is run again just before
// the first backward op that reads it. Ops are pure functions of their inputs, so this never
// changes a byte.

#ifndef QLORA_ENGINE_PLAN_REMATERIALIZE_H_
#define QLORA_ENGINE_PLAN_REMATERIALIZE_H_

#include <vector>

#include "absl/container/flat_hash_set.h"
#include "engine/record/program.h"

namespace qlora::engine {

struct RecomputeCost {
  double flops = 0;
  int64_t ops = 0;
  std::vector<int64_t> indices;  // of these ops in the rewritten piece
};

// Rewrites piece `piece_index` so that no buffer in `dropped` is kept from forward to backward. A
// dropped buffer's producer may itself read dropped buffers; those are recomputed first. Buffers
// written by no forward op, or not read behind it, are left alone. New buffers are added to the
// program for the second values. Moves of the piece, all in backward, keep their places.
RecomputeCost Rematerialize(Program* program, int64_t piece_index,
                            const absl::flat_hash_set<BufferId>& dropped);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_REMATERIALIZE_H_
