#include "engine/plan/lent_slots.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "kernels/paged_memory.h"

namespace qlora::engine {
namespace {

// Calls f(begin, end, lifetime) for the bytes in the arena of each transient buffer of a piece.
template <class F>
void VisitTransients(const Program& program, const PieceProgram& piece, const Placement& placement,
                     F&& f) {
  for (const Lifetime& lifetime : program.Lifetimes(piece)) {
    const int64_t begin = placement.offset[lifetime.buffer];
    f(begin, begin + program.buffers()[lifetime.buffer].bytes, lifetime);
  }
}

// What runs between the last micro-batch's end and that of the update, or beside its backward.
absl::flat_hash_set<int64_t> PiecesOfUpdate(const TrainPieces& train) {
  absl::flat_hash_set<int64_t> pieces(train.finish.begin(), train.finish.end());
  for (const std::vector<int64_t>& parts : train.take) pieces.insert(parts.begin(), parts.end());
  for (const UpdatePiece& update : train.update) pieces.insert(update.piece);
  pieces.insert(train.sum_chunks);
  return pieces;
}

// Where the phases of a micro-batch begin, and its end.
std::vector<int64_t> PhaseBorders(const PieceProgram& piece) {
  const int64_t forward = piece.backward_begin, backward = int64_t(piece.ops.size()) - forward;
  std::vector<int64_t> borders;
  for (int i = 0; i < kLendPhases; ++i) borders.push_back(forward * i / kLendPhases);
  for (int i = 0; i <= kLendPhases; ++i) borders.push_back(forward + backward * i / kLendPhases);
  return borders;
}

}  // namespace

std::vector<LentSlot> FindLentSlots(const RecordedRun& run, const Placement& placement,
                                    int64_t window_bytes) {
  const TrainPieces& train = *run.train;
  const std::vector<PieceProgram>& pieces = run.program.pieces();
  int64_t kept = 0;
  for (const int64_t i : PiecesOfUpdate(train)) {
    if (i < 0) continue;
    VisitTransients(run.program, pieces[i], placement,
                    [&](int64_t, int64_t end, const Lifetime&) { kept = std::max(kept, end); });
  }
  kept = kernels::AlignUp(kept, kernels::kPagedWindowAlignment);

  const PieceProgram& micro_batch = pieces[train.micro_batch];
  std::vector<LentSlot> slots;
  for (int64_t at = kept; at + window_bytes <= placement.bytes; at += window_bytes) {
    slots.push_back({.offset = at, .from = micro_batch.backward_begin});
  }
  VisitTransients(run.program, micro_batch, placement,
                  [&](int64_t begin, int64_t end, const Lifetime& lifetime) {
                    int64_t slot = std::max<int64_t>(begin - kept, 0) / window_bytes;
                    for (; slot < int64_t(slots.size()) && slots[slot].offset < end; ++slot) {
                      slots[slot].from = std::max(slots[slot].from, lifetime.last + 1);
                    }
                  });
  const std::vector<int64_t> borders = PhaseBorders(micro_batch);
  for (LentSlot& slot : slots) {
    slot.from = *std::lower_bound(borders.begin(), borders.end(), slot.from);
  }
  std::stable_sort(slots.begin(), slots.end(),
                   [](const LentSlot& a, const LentSlot& b) { return a.from < b.from; });
  return slots;
}

void LendSlots(absl::Span<const LentSlot> slots, const Placement& placement, int64_t window_bytes,
               RecordedRun* run) {
  std::vector<PieceProgram>& pieces = run->program.pieces();
  const absl::flat_hash_set<int64_t> update = PiecesOfUpdate(*run->train);
  const int64_t micro_batch = run->train->micro_batch;
  for (int64_t p = 0; p < int64_t(pieces.size()); ++p) {
    if (update.contains(p)) continue;
    std::vector<int64_t> first(slots.size(), -1);  // op that uses the slot
    VisitTransients(run->program, pieces[p], placement,
                    [&](int64_t begin, int64_t end, const Lifetime& lifetime) {
                      for (size_t s = 0; s < slots.size(); ++s) {
                        const int64_t at = slots[s].offset;
                        if (end <= at || at + window_bytes <= begin) continue;
                        if (first[s] < 0 || lifetime.first < first[s]) first[s] = lifetime.first;
                      }
                    });
    const std::vector<int64_t> borders =
        p == micro_batch ? PhaseBorders(pieces[p]) : std::vector<int64_t>{0};
    std::vector<Move> moves;
    for (size_t s = 0; s < slots.size(); ++s) {
      if (first[s] < 0) continue;
      const int64_t before = *(std::upper_bound(borders.begin(), borders.end(), first[s]) - 1);
      moves.push_back({before, Move::Kind::kReclaim, int64_t(s)});
    }
    // Bytes are given back before anything else that happens there can want them.
    moves.insert(moves.end(), pieces[p].moves.begin(), pieces[p].moves.end());
    for (size_t s = 0; p == micro_batch && s < slots.size(); ++s) {
      if (s + 1 < slots.size() && slots[s + 1].from == slots[s].from) continue;
      moves.push_back({slots[s].from, Move::Kind::kLend, int64_t(s) + 1});
    }
    std::stable_sort(moves.begin(), moves.end(),
                     [](const Move& a, const Move& b) { return a.before < b.before; });
    pieces[p].moves = std::move(moves);
  }
}

}  // namespace qlora::engine
