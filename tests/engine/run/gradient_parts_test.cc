#include "engine/step/gradient_parts.h"

#include <type_traits>

#include "gtest/gtest.h"
#include "tests/engine/run/model_run.h"

namespace qlora::engine {
namespace {

struct Case {
  const char* name;
  const char* model;
  proto::Mode::Value mode = proto::Mode::QLORA;
  proto::Recompute::Value recompute = proto::Recompute::NONE;
};

class GradientParts : public testing::TestWithParam<Case> {
 protected:
  Plan MakePlan(int ranks, int64_t least_part_bytes) {
    const Case& c = GetParam();
    const Dataset data = GoldenDocuments("qlora_llama");
    RecordOptions record = TrainingOptions(c.model, data, 1, 4);
    record.storage.mode = c.mode;
    if (c.mode == proto::Mode::FULL) record.storage.lora = {};
    record.storage.ranks = ranks;
    record.least_part_bytes = least_part_bytes;
    ModelRun run({.model = c.model, .record = record, .recompute = c.recompute}, CpuDevice());
    return run.plan();
  }
};

// Elements of the gradient that op `i` of the micro-batch writes.
template <class F>
void VisitWrites(const Plan& plan, int64_t i, F&& f) {
  const PieceProgram& piece = plan.run.program.pieces()[plan.run.train->micro_batch];
  kernels::VisitTensors(piece.ops[i], [&](const char*, const auto& view) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(view)>, kernels::Tensor>) {
      if (view.data == nullptr) return;
      if (Program::IdOf(view.data) != Program::IdOf(plan.run.storage.gradient.data)) return;
      f(Program::OffsetOf(view.data) / 4, view.Count());
    }
  });
}

TEST_P(GradientParts, AreFinishedWhereTheySaySoAndNotBefore) {
  constexpr int64_t kLeastBytes = 4 << 10;
  const Plan plan = MakePlan(2, kLeastBytes);
  const std::vector<GradientPart>& parts = plan.run.train->gradient_parts;
  ASSERT_GT(parts.size(), 2u);
  ASSERT_LE(parts.size(), 8u);
  // They cover the space from its end down.
  int64_t end = plan.run.storage.space.size();
  for (const GradientPart& part : parts) {
    EXPECT_EQ(part.begin + part.count, end);
    EXPECT_GE(part.count * 4, kLeastBytes);
    end = part.begin;
  }
  EXPECT_EQ(end, 0);

  const PieceProgram& piece = plan.run.program.pieces()[plan.run.train->micro_batch];
  ASSERT_EQ(piece.moves.size(), parts.size());
  int64_t before = piece.backward_begin;
  for (size_t p = 0; p < parts.size(); ++p) {
    const Move& move = piece.moves[p];
    EXPECT_EQ(move.kind, Move::Kind::kSum);
    EXPECT_EQ(move.window, int64_t(p));
    EXPECT_GE(move.before, before);
    before = move.before;
    for (int64_t i = move.before; i < int64_t(piece.ops.size()); ++i) {
      VisitWrites(plan, i, [&](int64_t begin, int64_t count) {
        EXPECT_FALSE(begin < parts[p].begin + parts[p].count && begin + count > parts[p].begin)
            << "op " << i << " writes part " << p << ", summed before op " << move.before;
      });
    }
    if (p + 1 == parts.size()) continue;
    // The op before the move is what the part, or one before it, waited for.
    bool writes = false;
    VisitWrites(plan, move.before - 1,
                [&](int64_t begin, int64_t) { writes |= begin >= parts[p].begin; });
    EXPECT_TRUE(writes) << "part " << p << " is summed later than it could be";
  }
  EXPECT_LT(piece.moves[0].before, int64_t(piece.ops.size()));
  EXPECT_EQ(piece.moves.back().before, int64_t(piece.ops.size()));
  // What arrives is no larger than the largest part.
  EXPECT_LT(plan.run.train->gradients_arriving.Count(), plan.run.storage.space.size() / 2);
}

TEST_P(GradientParts, OfOneRankOrASmallGradientAreOne) {
  for (const auto& [ranks, least] : {std::pair(1, int64_t{1}), std::pair(2, int64_t{1} << 30)}) {
    const Plan plan = MakePlan(ranks, least);
    ASSERT_EQ(plan.run.train->gradient_parts.size(), 1u);
    EXPECT_EQ(plan.run.train->gradient_parts[0].count, plan.run.storage.space.size());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Runs, GradientParts,
    testing::Values(
        Case{"qlora", "llama3_tied"},
        Case{.name = "recomputed", .model = "qwen3", .recompute = proto::Recompute::FULL},
        Case{.name = "full", .model = "mistral", .mode = proto::Mode::FULL},
        Case{.name = "full_recomputed",
             .model = "mistral",
             .mode = proto::Mode::FULL,
             .recompute = proto::Recompute::FULL}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qlora::engine
