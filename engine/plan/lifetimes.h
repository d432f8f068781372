// When the transient buffers of a piece need bytes.

#ifndef QLORA_ENGINE_PLAN_LIFETIMES_H_
#define QLORA_ENGINE_PLAN_LIFETIMES_H_

#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/record/program.h"

namespace qlora::engine {

// Lifetimes of which the second begins with the op that ends the first, where that op may work in
// place, are joined: one span of bytes then serves both.
struct JoinedLifetimes {
  std::vector<Lifetime> lifetimes;
  absl::flat_hash_map<BufferId, std::vector<BufferId>> heirs;  // buffers placed with a buffer
};
JoinedLifetimes JoinInPlace(const Program& program, const PieceProgram& piece);

// The most bytes that live at a time in any piece: no arena is smaller.
int64_t LeastArenaBytes(const Program& program);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_LIFETIMES_H_
