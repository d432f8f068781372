#include "engine/placement.h"

#include <algorithm>

namespace qlora::engine {
namespace {

struct Placed {
  int64_t first, last;  // lifetime
  int64_t begin, end;   // bytes in the arena
};

int64_t LowestFreeOffset(std::vector<Placed>& rivals, int64_t bytes) {
  std::sort(rivals.begin(), rivals.end(),
            [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  int64_t offset = 0;
  for (const Placed& rival : rivals) {
    if (rival.begin >= offset + bytes) break;
    offset = std::max(offset, rival.end);
  }
  return offset;
}

int64_t PlacePiece(const Program& program, const PieceProgram& piece,
                   std::vector<int64_t>* offset) {
  std::vector<Lifetime> lifetimes = program.Lifetimes(piece);
  const auto bytes_of = [&](const Lifetime& l) { return program.buffers()[l.buffer].bytes; };
  std::stable_sort(lifetimes.begin(), lifetimes.end(),
                   [&](const Lifetime& a, const Lifetime& b) { return bytes_of(a) > bytes_of(b); });
  std::vector<Placed> placed;
  int64_t end = 0;
  for (const Lifetime& l : lifetimes) {
    std::vector<Placed> rivals;
    for (const Placed& p : placed) {
      if (p.first <= l.last && l.first <= p.last) rivals.push_back(p);
    }
    const int64_t bytes = bytes_of(l);
    const int64_t begin = LowestFreeOffset(rivals, bytes);
    placed.push_back({l.first, l.last, begin, begin + bytes});
    (*offset)[l.buffer] = begin;
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
