#include "engine/plan/offload.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"

namespace qlora::engine {
namespace {

// First and last op of either pass that touches a buffer; −1 where none does.
struct Uses {
  int64_t forward_first = -1, forward_last = -1;
  int64_t backward_first = -1, backward_last = -1;
};

std::vector<Uses> UsesIn(const PieceProgram& piece, absl::Span<const BufferId> buffers) {
  absl::flat_hash_map<BufferId, size_t> index;
  for (size_t i = 0; i < buffers.size(); ++i) index[buffers[i]] = i;
  std::vector<Uses> uses(buffers.size());
  for (int64_t i = 0; i < int64_t(piece.ops.size()); ++i) {
    const bool forward = i < piece.backward_begin;
    kernels::VisitTensors(piece.ops[i], [&](const char*, const auto& view) {
      if (view.data == nullptr) return;
      const auto found = index.find(Program::IdOf(view.data));
      if (found == index.end()) return;
      Uses& u = uses[found->second];
      int64_t& first = forward ? u.forward_first : u.backward_first;
      (forward ? u.forward_last : u.backward_last) = i;
      if (first < 0) first = i;
    });
  }
  return uses;
}

}  // namespace

OffloadedBuffers Offload(Program* program, int64_t piece_index,
                         absl::Span<const BufferId> buffers) {
  PieceProgram& piece = program->pieces()[piece_index];
  OffloadedBuffers result;
  const std::vector<Uses> all = UsesIn(piece, buffers);
  std::vector<Uses> uses;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (all[i].forward_first < 0 || all[i].backward_first < 0) continue;
    result.windows.push_back(buffers[i]);
    uses.push_back(all[i]);
  }
  const int64_t count = int64_t(result.windows.size());
  if (count <= kOffloadSlots) return {};
  result.shape = {.window_bytes = program->buffers()[result.windows.front()].bytes,
                  .windows = count,
                  .slots = kOffloadSlots,
                  .page_locked = true};
  using enum Move::Kind;
  for (int64_t w = 0; w < count; ++w) {
    program->MakeOffloaded(result.windows[w]);
    piece.moves.push_back({uses[w].forward_first, kClaim, w});
    // The last ones stay: backward wants them first.
    if (w + kOffloadSlots < count) {
      piece.moves.push_back({uses[w].forward_last + 1, kEvict, w});
      piece.moves.push_back({uses[w].backward_first, kAwait, w});
    }
    piece.moves.push_back({uses[w].backward_last + 1, kDrop, w});
    // Its slot is for the window that backward wants next but one.
    if (w >= kOffloadSlots) {
      piece.moves.push_back({uses[w].backward_last + 1, kBring, w - kOffloadSlots});
    }
  }
  // A window is dropped before its slot is filled again: the order of equal places is kept.
  std::stable_sort(piece.moves.begin(), piece.moves.end(),
                   [](const Move& a, const Move& b) { return a.before < b.before; });
  return result;
}

}  // namespace qlora::engine
