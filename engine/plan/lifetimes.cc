#include "engine/plan/lifetimes.h"

#include <algorithm>
#include <variant>

namespace qlora::engine {
namespace {

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

int64_t MostAlive(const Program& program, const PieceProgram& piece) {
  std::vector<int64_t> change(piece.ops.size() + 1);  // of the living bytes, at each op
  for (const Lifetime& l : JoinInPlace(program, piece).lifetimes) {
    change[l.first] += program.buffers()[l.buffer].bytes;
    change[l.last + 1] -= program.buffers()[l.buffer].bytes;
  }
  int64_t alive = 0, most = 0;
  for (const int64_t c : change) most = std::max(most, alive += c);
  return most;
}

}  // namespace

JoinedLifetimes JoinInPlace(const Program& program, const PieceProgram& piece) {
  JoinedLifetimes joined;
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
      joined.heirs[first.buffer].push_back(second.buffer);
      index[second.buffer] = from->second;
    });
  }
  for (size_t i = 0; i < lifetimes.size(); ++i) {
    if (index[lifetimes[i].buffer] == i) joined.lifetimes.push_back(lifetimes[i]);
  }
  return joined;
}

int64_t LeastArenaBytes(const Program& program) {
  int64_t bytes = 0;
  for (const PieceProgram& piece : program.pieces()) {
    bytes = std::max(bytes, MostAlive(program, piece));
  }
  return bytes;
}

}  // namespace qlora::engine
