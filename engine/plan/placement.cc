#include "engine/plan/placement.h"

#include <algorithm>

#include "engine/plan/lifetimes.h"

namespace qlora::engine {
namespace {

struct Placed {
  int64_t first, last;  // lifetime
  int64_t begin, end;   // bytes in the arena
};

// The lowest offset at which so many bytes are free over a lifetime. `placed` is in the order of
// `begin`.
int64_t LowestFreeOffset(const std::vector<Placed>& placed, const Lifetime& l, int64_t bytes) {
  int64_t offset = 0;
  for (const Placed& other : placed) {
    if (other.begin >= offset + bytes) break;
    if (other.first <= l.last && l.first <= other.last) offset = std::max(offset, other.end);
  }
  return offset;
}

int64_t PlacePiece(const Program& program, const PieceProgram& piece,
                   std::vector<int64_t>* offset) {
  auto [lifetimes, heirs] = JoinInPlace(program, piece);
  const auto bytes_of = [&](const Lifetime& l) { return program.buffers()[l.buffer].bytes; };
  std::stable_sort(lifetimes.begin(), lifetimes.end(),
                   [&](const Lifetime& a, const Lifetime& b) { return bytes_of(a) > bytes_of(b); });
  std::vector<Placed> placed;  // in the order of `begin`
  int64_t end = 0;
  for (const Lifetime& l : lifetimes) {
    const int64_t bytes = bytes_of(l);
    const int64_t begin = LowestFreeOffset(placed, l, bytes);
    const auto behind =
        std::upper_bound(placed.begin(), placed.end(), begin,
                         [](int64_t at, const Placed& other) { return at < other.begin; });
    placed.insert(behind, {l.first, l.last, begin, begin + bytes});
    (*offset)[l.buffer] = begin;
    for (const BufferId heir : heirs[l.buffer]) (*offset)[heir] = begin;
    end = std::max(end, begin + bytes);
  }
  return end;
}

}  // namespace

Placement PlaceTransients(const Program& program) {
  Placement placement;
  placement.offset.assign(program.buffers().size(), -1);
  for (const PieceProgram& piece : program.pieces()) {
    placement.bytes = std::max(placement.bytes, PlacePiece(program, piece, &placement.offset));
  }
  return placement;
}

}  // namespace qlora::engine
