// Slots that activations lend: a walk through the pieces of several steps, with windows in every
// slot from the moment it is lent until it is wanted back.

#include "engine/plan/lent_slots.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

constexpr int64_t kWindow = 4096;

class Walk {
 public:
  explicit Walk(const Plan& plan) : plan_(plan), program_(plan.run.program) {}

  void Piece(int64_t index, bool is_last = false) {
    const PieceProgram& piece = program_.pieces()[index];
    const std::vector<Lifetime> lifetimes = program_.Lifetimes(piece);
    if (is_last) budgets_.clear();
    auto move = piece.moves.begin();
    for (int64_t i = 0; i <= int64_t(piece.ops.size()); ++i) {
      for (; move != piece.moves.end() && move->before == i; ++move) Do(*move, is_last);
      for (const Lifetime& lifetime : lifetimes) {
        if (lifetime.first <= i && i <= lifetime.last) Use(piece, lifetime.buffer);
      }
    }
    EXPECT_TRUE(move == piece.moves.end()) << piece.name;
  }

  int64_t held() const { return int64_t(held_.size()); }
  // Slots that the last step lent, phase by phase.
  const std::vector<int64_t>& budgets() const { return budgets_; }

 private:
  void Do(const Move& move, bool is_last) {
    if (move.kind == Move::Kind::kReclaim) held_.erase(move.window);
    if (move.kind != Move::Kind::kLend || !is_last) return;
    budgets_.push_back(move.window);
    for (int64_t slot = 0; slot < move.window; ++slot) held_.insert(slot);
  }
  void Use(const PieceProgram& piece, BufferId id) {
    const int64_t begin = plan_.placement.offset[id], end = begin + program_.buffers()[id].bytes;
    for (const int64_t slot : held_) {
      const int64_t at = plan_.paging.lent_offsets[slot];
      EXPECT_TRUE(end <= at || at + kWindow <= begin)
          << program_.buffers()[id].name << " of " << piece.name << " lies in slot " << slot;
    }
  }

  const Plan& plan_;
  const Program& program_;
  std::set<int64_t> held_;
  std::vector<int64_t> budgets_;
};

TEST(LentSlots, NeverHoldWindowsWhileAnythingElseIsThere) {
  const Dataset data = GoldenDocuments("qlora_llama");
  for (const auto recompute : {proto::Recompute::NONE, proto::Recompute::FULL}) {
    RecordOptions record = TrainingOptions("llama3_tied", data, 1, 2);
    record.eval = record.train;
    ModelRun::Options options{.model = "llama3_tied", .record = record, .recompute = recompute};
    const Plan whole = ModelRun(options, CpuDevice()).plan();
    options.paging = {.allowed = true, .window_bytes = kWindow, .folder = testing::TempDir()};
    options.memory_limit = whole.total_bytes - 1;
    const ModelRun run(options, CpuDevice());
    const Plan& plan = run.plan();
    ASSERT_GT(plan.paging.slots, 3);
    EXPECT_EQ(plan.placement.bytes, whole.placement.bytes) << "states took memory of their own";

    const TrainPieces& train = *plan.run.train;
    Walk walk(plan);
    for (int step = 0; step < 2; ++step) {
      walk.Piece(train.begin_sum);
      walk.Piece(train.micro_batch);
      EXPECT_EQ(walk.held(), 0) << "by the end of a micro-batch all bytes were used";
      for (const int64_t keep : train.keep) walk.Piece(keep);
      walk.Piece(train.micro_batch, /*is_last=*/true);
      EXPECT_EQ(walk.held(), plan.paging.slots);
      for (const auto& parts : train.take) {
        for (const int64_t take : parts) walk.Piece(take);
      }
      for (const int64_t finish : train.finish) walk.Piece(finish);
      for (const UpdatePiece& update : train.update) walk.Piece(update.piece);
      EXPECT_EQ(walk.held(), plan.paging.slots);
      if (step == 0) walk.Piece(plan.run.eval->forward);
    }
    // The budget grows by phases.
    EXPECT_GT(walk.budgets().size(), 1u);
    EXPECT_TRUE(std::is_sorted(walk.budgets().begin(), walk.budgets().end()));
  }
}

}  // namespace
}  // namespace qlora::engine
