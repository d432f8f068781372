#include "engine/plan/placement.h"

#include <algorithm>
#include <variant>

#include "absl/container/flat_hash_map.h"

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

// Calls f(output, input) for what an op may write over an input of its own: the ops' headers say
// so.
template <class F>
void VisitInPlace(const kernels::Op& op, F&& f) {
  if (const auto* gated = std::get_if<kernels::GatedActivationBackward>(&op)) {
    f(gated->dgate, gated->gate);
    f(gated->dup, gated->up);
  } else if (const auto* norm = std::get_if<kernels::RmsNormBackward>(&op)) {
    f(norm->dx, norm->dresidual);
  } else if (const auto* rope = std::get_if<kernels::Rope>(&op)) {
    f(rope->y, rope->x);
  }
}

// Joins lifetimes of which the second begins with the op that ends the first, where that op may
// work in place: one span of bytes then serves both. `heirs[id]` are the buffers placed with buffer
// id.
std::vector<Lifetime> JoinInPlace(const Program& program, const PieceProgram& piece,
                                  absl::flat_hash_map<BufferId, std::vector<BufferId>>* heirs) {
  std::vector<Lifetime> lifetimes = program.Lifetimes(piece);
  absl::flat_hash_map<BufferId, size_t> index;
  for (size_t i = 0; i < lifetimes.size(); ++i) index[lifetimes[i].buffer] = i;
  for (int64_t i = 0; i < int64_t(piece.ops.size()); ++i) {
    VisitInPlace(piece.ops[i], [&](const kernels::Tensor& out, const kernels::ConstTensor& in) {
      if (!out || !in || Program::OffsetOf(out.data) != 0 || Program::OffsetOf(in.data) != 0)
        return;
      if (out.pitch != in.pitch) return;
      const auto from = index.find(Program::IdOf(in.data)),
                 to = index.find(Program::IdOf(out.data));
      if (from == index.end() || to == index.end() || from->second == to->second) return;
      Lifetime& first = lifetimes[from->second];
      const Lifetime& second = lifetimes[to->second];
      if (first.last != i || second.first != i) return;
      if (program.buffers()[first.buffer].bytes != program.buffers()[second.buffer].bytes) return;
      first.last = second.last;
      (*heirs)[first.buffer].push_back(second.buffer);
      index[second.buffer] = from->second;
    });
  }
  std::vector<Lifetime> joined;
  for (size_t i = 0; i < lifetimes.size(); ++i) {
    if (index[lifetimes[i].buffer] == i) joined.push_back(lifetimes[i]);
  }
  return joined;
}

int64_t PlacePiece(const Program& program, const PieceProgram& piece,
                   std::vector<int64_t>* offset) {
  absl::flat_hash_map<BufferId, std::vector<BufferId>> heirs;
  std::vector<Lifetime> lifetimes = JoinInPlace(program, piece, &heirs);
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
